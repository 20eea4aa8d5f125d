"""Where each number of a packed weight matrix lies in memory.

Output rows are cut into *tiles* of ``blocks * lanes`` rows, the rows that one pass of a kernel computes. Codes are
stored as bit planes of widths 8, 4, 2 and 1 (3 = 2+1, 5 = 4+1, 6 = 4+2; the widest plane holds the highest bits). A
*line* of a plane of width b is ``4 * lanes`` bytes and holds ``lanes`` rows x ``32 / b`` inputs: byte ``4 * row + j``,
bit field ``f`` is input ``4 * f + j``. A *unit* is the fewest inputs that fill whole lines of every plane; all its
lines are neighbours, so a kernel reads one linear stream:

    codes  u8  [tiles, inputs / unit, blocks, lines, 4 * lanes]
    scales f16 [tiles, groups, blocks, lanes]
    zeros  u8  [tiles, groups, blocks, lanes]           (asymmetric schemes only)
    codebook u8 [64]                                    (codebook schemes only: entry i % 2**bits, plus 128)
    weights f32 or f16 [tiles, inputs, blocks * lanes]  (float schemes, instead of those above)

Rows beyond ``outputs`` pad the last tile; all their tensors are zero. A codebook repeats its entries up to a line, so
that a look-up instruction finds them whichever part of a register it reads, and is stored as the unsigned operand
that kernels multiply.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from bitwright.scheme import CODEBOOK_BYTES, WeightScheme

PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Plane widths of each code width, highest bits first."""

INPUT_MULTIPLE = 32
"""Packed kernels work on whole units, and 32 inputs are a whole number of units at every width."""

_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "float32": 4, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor of a packed matrix."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True)
class Plane:
    """One bit plane of a unit: its width, the bit of a code it starts at, its first line and its number of lines."""

    width: int
    position: int
    first: int
    lines: int

    @property
    def fields(self) -> int:
        """Codes in one byte."""
        return 8 // self.width


@dataclass(frozen=True)
class PackedLayout:
    """Layout of one matrix of (outputs, inputs) weights. Legality is checked by ``codegen.linear.why_illegal``."""

    outputs: int
    inputs: int
    weight: WeightScheme
    lanes: int
    blocks: int

    @property
    def rows(self) -> int:
        """Output rows of a tile."""
        return self.blocks * self.lanes

    @property
    def tiles(self) -> int:
        return -(-self.outputs // self.rows)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.weight.group or self.inputs

    @property
    def groups(self) -> int:
        return self.inputs // self.group

    @property
    def unit(self) -> int:
        """Inputs of a unit."""
        return INPUT_MULTIPLE // min(PLANES[self.weight.bits])

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """The bit planes of a unit, in storage order."""
        planes, position, first = [], self.weight.bits, 0
        for width in PLANES[self.weight.bits]:
            position -= width
            planes.append(Plane(width, position, first, self.unit * width // INPUT_MULTIPLE))
            first += planes[-1].lines
        return tuple(planes)

    @property
    def lines(self) -> int:
        """Lines of a unit, all planes."""
        return self.unit * self.weight.bits // INPUT_MULTIPLE

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The stored tensors, in the order in which kernels take them."""
        tiles, blocks, lanes = self.tiles, self.blocks, self.lanes
        if self.weight.is_float:
            return (TensorSpec("weights", f"float{self.weight.bits}", (tiles, self.inputs, self.rows)),)
        codes = TensorSpec("codes", "uint8", (tiles, self.inputs // self.unit, blocks, self.lines, 4 * lanes))
        scales = TensorSpec("scales", "float16", (tiles, self.groups, blocks, lanes))
        zeros = TensorSpec("zeros", "uint8", (tiles, self.groups, blocks, lanes))
        if self.weight.is_codebook:
            return (codes, scales, TensorSpec("codebook", "uint8", (CODEBOOK_BYTES,)))
        return (codes, scales) if self.weight.symmetric else (codes, scales, zeros)

    @property
    def storage_bytes(self) -> int:
        """Exact bytes in memory and on disk, padding rows included."""
        return sum(tensor.nbytes for tensor in self.tensors)


def choose_blocks(outputs: int, lanes: int) -> int:
    """Blocks per tile that waste least: padding rows, and the idle core when two cores share an odd number of tiles.

    Four blocks amortise the activation loads best, so they win ties.
    """

    def cost(blocks: int) -> int:
        tiles = -(-outputs // (blocks * lanes))
        return (tiles + tiles % 2) * blocks

    return min((4, 3, 2), key=lambda blocks: (cost(blocks), -blocks))


def packed_layout(outputs: int, inputs: int, weight: WeightScheme, lanes: int) -> PackedLayout:
    """The layout that kernels of ``lanes`` lanes read a matrix in."""
    return PackedLayout(outputs, inputs, weight, lanes, choose_blocks(outputs, lanes))
