"""Where each number of a packed weight matrix lies in memory.

Output rows are cut into *tiles* of ``blocks * lanes`` rows, the rows that one pass of a kernel computes. A *line* is
``4 * lanes`` bytes; its byte ``4 * row + j`` holds bits of inputs ``4 * step + j`` of one row, for several *steps*. A
*unit* is the fewest inputs whose codes fill whole lines; all its lines are neighbours, so a kernel reads one linear
stream. Within a unit, codes lie where a kernel needs the fewest instructions (``FIELDS``):

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


@dataclass(frozen=True)
class Piece:
    """Bits of a code: ``width`` bits of line ``line`` from bit ``source`` on, which become bits ``position`` ... of
    it."""

    line: int
    source: int
    width: int
    position: int


Field = tuple[Piece, ...]
"""Where the code of one step of four inputs lies: its pieces, the highest bits first."""


def _whole(bits: int) -> tuple[Field, ...]:
    """Widths that divide a byte: fields of one line."""
    return tuple((Piece(0, source, bits, 0),) for source in range(0, 8, bits))


FIELDS: dict[int, tuple[Field, ...]] = {
    2: _whole(2),
    # Two codes in six bits of each line; the two bits left over of the first two lines are the high bits of one more
    # each, whose low bits are those left over of the third.
    3: (
        *((Piece(line, source, 3, 0),) for source in (0, 3) for line in range(3)),
        (Piece(0, 6, 2, 1), Piece(2, 6, 1, 0)),
        (Piece(1, 6, 2, 1), Piece(2, 7, 1, 0)),
    ),
    4: _whole(4),
    # One code in each line; the fifteen bits left over are three more.
    5: (
        *((Piece(line, 0, 5, 0),) for line in range(5)),
        (Piece(0, 5, 3, 2), Piece(3, 6, 2, 0)),
        (Piece(1, 5, 3, 2), Piece(4, 6, 2, 0)),
        (Piece(2, 5, 3, 2), Piece(3, 5, 1, 1), Piece(4, 5, 1, 0)),
    ),
    # One code in each line; the six bits left over are another.
    6: (
        *((Piece(line, 0, 6, 0),) for line in range(3)),
        (Piece(0, 6, 2, 4), Piece(1, 6, 2, 2), Piece(2, 6, 2, 0)),
    ),
    8: _whole(8),
}
"""By width: where the codes of a unit's steps lie. A code in one piece, or whose first piece holds its highest bits
at the top of a byte, is masked and multiplied where it lies; only the other pieces are shifted (right)."""

INPUT_MULTIPLE = 32
"""Packed kernels work on whole units, and 32 inputs are a whole number of units at every width."""

MAX_BLOCKS = 4
"""Blocks of the largest tile."""

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
    def fields(self) -> tuple[Field, ...]:
        """Where the codes of each step of a unit lie."""
        return FIELDS[self.weight.bits]

    @property
    def unit(self) -> int:
        """Inputs of a unit."""
        return 4 * len(self.fields)

    @property
    def lines(self) -> int:
        """Lines of a unit."""
        return self.unit * self.weight.bits // INPUT_MULTIPLE

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """The bit at which the code of each step of a unit lies if only its lower pieces are moved.

        What is looked up in a codebook is a byte, wherever the code lay.
        """
        if self.weight.is_codebook:
            return (0,) * len(self.fields)
        return tuple(field[0].source - field[0].position for field in self.fields)

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
    """Blocks per tile: those that pad least, then those that leave no core idle when two share the tiles, then most.

    A matrix whose rows are a multiple of the lanes is never padded, so that its bytes are those of its scheme. Decoding
    is as fast with any number of blocks, but many tokens reuse an activation once per block: a single one comes last.
    """
    whole = -(-outputs // lanes)

    def cost(blocks: int) -> tuple[int, bool, int, int]:
        tiles = -(-whole // blocks)
        return tiles * blocks - whole, blocks == 1, tiles % 2 * blocks, -blocks

    return min(range(MAX_BLOCKS, 0, -1), key=cost)


def packed_layout(outputs: int, inputs: int, weight: WeightScheme, lanes: int) -> PackedLayout:
    """The layout that kernels of ``lanes`` lanes read a matrix in."""
    return PackedLayout(outputs, inputs, weight, lanes, choose_blocks(outputs, lanes))
