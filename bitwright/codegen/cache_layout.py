"""Where each number of a packed key or value cache lies in memory.

A packed cache is ``u8[kv_heads, head_bytes]``. A head is a row of *blocks*, and last, on whole cache lines, where the
scheme keeps the first token exact, its elements as ``f16[width]``, and where it keeps a run of R recent tokens exact,
a ring of them as float caches have them: keys ``f16[R / 16, width, 16]``, values ``f16[R, width]``, the token at
position p in place p mod R. A block holds 32 tokens: their codes, then a
scale and a zero point each, ``u16[groups, 32]``: one stream (codes apart from scales, which would keep every line of
codes aligned, was measured to be 10 % slower from DRAM).

Codes are bit planes of widths 8, 4, 2 and 1 (3 = 2+1, 5 = 4+1, 6 = 4+2). A *line* of a plane of width b is 64 bytes and
holds 16 rows x 32 / b inputs: byte 4 * row + j, bit field f is input 4 * f + j, so that a byte dot product multiplies
16 rows with four inputs at once. A *unit* is the fewest inputs that fill whole lines of every plane. Scores sum over
elements, outputs over tokens:

======= ======== ========= ========================================================================
cache   rows     inputs    codes
======= ======== ========= ========================================================================
keys    tokens   elements  u8[2, elements / unit, lines, 64]: 16 tokens, then 16 more
values  elements tokens    u8[elements / 16, 32 / unit, lines, 64]
======= ======== ========= ========================================================================

A code c of a group with scale s and zero point z stands for ``s * (c - z * (2**bits - 1) / 63)``: at every width the
zero point has 64 steps between the lowest and the highest code. They share a word: its high ten bits are the scale's
exponent and first five bits of mantissa, as a half has them, its low six bits are z. Scales are rounded up, so that
codes reach a group's ends; steps grow by 1.1 % on average, and 16 bits for both save as much as a narrower code would
cost (docs/decisions.md).

Keys of two widths (``k5-3rowm``) have the codes of the first half of the elements first, then those of the second. They
share scale and zero point: with T the highest code of the first half and t that of an element's own, a code stands for
``s * T / t * (c - z * t / 63)``, so that both halves span one range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

from bitwright.scheme import AFFINE_BYTES, CacheScheme

PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Plane widths of each code width, highest bits first."""
INPUT_MULTIPLE = 32
"""Inputs that are a whole number of units at every width."""
TOKENS = 32
"""Tokens of a block: a whole number of units at every width."""
ROWS = 16
"""Rows of a line."""
LINE_BYTES = 4 * ROWS
ZERO_STEPS = 63
SCALE_ROUNDING = 31
"""Added to a half's bits before the last five are cleared: rounds up to five bits of mantissa."""
SCALE_MASK = 0x7FE0
"""The bits of a half that a scale keeps."""
LARGEST_SCALE = 64512.0
"""The largest finite half of five bits of mantissa."""
LARGEST_HALF = 65504.0
NORMAL_RANGES = {2: 3.1, 3: 4.0, 4: 4.5}
"""By width: the range, in standard deviations, in which codes of normally distributed numbers lose least."""


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
class PackedCache:
    """Layout of one layer's packed K or V cache.

    Attributes:
        scheme: a packed one.
        heads: key/value heads.
        width: elements of a head.
        capacity: tokens.
        part_of, part_at: see ``parts``.
    """

    scheme: CacheScheme
    heads: int
    width: int
    capacity: int
    part_of: PackedCache | None = None
    part_at: int = 0

    @property
    def parts(self) -> tuple[PackedCache, ...]:
        """Runs of elements whose codes have one width: the cache itself, or views of the two halves of its elements.

        A view's codes lie ``part_at`` bytes behind the beginning of the block; it has no scales of its own.
        """
        if not self.scheme.low:
            return (self,)
        high, low = (CacheScheme("k", bits) for bits in (self.scheme.bits, self.scheme.low))
        first = PackedCache(high, self.heads, self.width // 2, self.capacity, self)
        return first, PackedCache(low, self.heads, self.width // 2, self.capacity, self, first.code_bytes)

    @property
    def bits(self) -> int:
        return self.scheme.bits

    @property
    def top(self) -> int:
        """The highest code, of the widest part."""
        return (1 << self.bits) - 1

    @property
    def group(self) -> int:
        """Elements that share a scale and a width."""
        return self.scheme.group or self.width // len(self.parts)

    @property
    def groups(self) -> int:
        return self.width // self.group

    @property
    def words(self) -> int:
        """Scales of a token: parts share one, which is that of the first."""
        return self.groups // len(self.parts)

    @cached_property
    def share(self) -> float:
        """The part of a group's range that codes span, in its middle; numbers beyond are stored as its ends.

        Elements that a map has mixed are about normal. The range of n of them is 2 Phi^-1((n - 3/8) / (n + 1/4)) on
        average (Blom 1958): at few bits, finer steps are worth more than the ends.
        """
        if not self.scheme.mapped or self.bits not in NORMAL_RANGES:
            return 1.0
        size = self.width // self.words
        expected = 2 * NormalDist().inv_cdf((size - 0.375) / (size + 0.25))
        return min(1.0, NORMAL_RANGES[self.bits] / expected)

    @property
    def unit(self) -> int:
        """Inputs of a unit."""
        return INPUT_MULTIPLE // min(PLANES[self.bits])

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """The bit planes of a unit, in storage order, highest bits first."""
        planes, position, first = [], self.bits, 0
        for width in PLANES[self.bits]:
            position -= width
            planes.append(Plane(width, position, first, self.unit * width // INPUT_MULTIPLE))
            first += planes[-1].lines
        return tuple(planes)

    @property
    def lines(self) -> int:
        """Lines of a unit, all planes."""
        return self.unit * self.bits // INPUT_MULTIPLE

    @property
    def units(self) -> int:
        """Units of a row: of a token's elements (the last may be filled up with zeros) or of a block's tokens."""
        return -(-self.width // self.unit) if self.scheme.tensor == "k" else TOKENS // self.unit

    @property
    def row_blocks(self) -> int:
        """Runs of 16 rows in a block."""
        return TOKENS // ROWS if self.scheme.tensor == "k" else self.width // ROWS

    @property
    def code_bytes(self) -> int:
        if self.scheme.low:
            return sum(part.code_bytes for part in self.parts)
        return self.row_blocks * self.units * self.lines * LINE_BYTES

    @property
    def blocks(self) -> int:
        return -(-self.capacity // TOKENS)

    @property
    def exact_tokens(self) -> int:
        """Tokens at the start of the context whose elements are kept in half precision too."""
        return 1 if self.scheme.keeps_first else 0

    @property
    def shape(self) -> tuple[int, int]:
        return (self.heads, self.recent_at + _whole_lines(2 * self.width * self.scheme.recent))

    @property
    def block_bytes(self) -> int:
        return self.code_bytes + self.words * TOKENS * AFFINE_BYTES

    def codes_at(self, block: Any) -> Any:
        """Byte of a head where a block's codes begin."""
        return block * (self.part_of or self).block_bytes + self.part_at

    def affine_at(self, block: Any, word: Any) -> Any:
        """Byte of a head where a block's words of scale and zero point number ``word`` begin."""
        return self.codes_at(block) + self.code_bytes + word * TOKENS * AFFINE_BYTES

    @property
    def exact_at(self) -> int:
        """Byte of a head where exact tokens begin: blocks end anywhere where there are none."""
        size = self.blocks * self.block_bytes
        return _whole_lines(size) if self.exact_tokens or self.scheme.recent else size

    @property
    def recent_at(self) -> int:
        """Byte of a head where the ring of recent tokens begins."""
        return self.exact_at + _whole_lines(2 * self.width * self.exact_tokens)

    def recent_key_at(self, block: Any, element: Any, lane: Any) -> Any:
        """Byte of a head where an element of place 16 * ``block`` + ``lane`` of the ring lies, beside other places'."""
        return self.recent_at + ((block * self.width + element) * ROWS + lane) * 2

    def recent_value_at(self, token: Any, element: Any) -> Any:
        """Byte of a head where an element of token ``token`` of the ring lies: elements are neighbours."""
        return self.recent_at + (token * self.width + element) * 2


def _whole_lines(size: int) -> int:
    return -(-size // LINE_BYTES) * LINE_BYTES


def why_no_packed_cache(scheme: CacheScheme, width: int) -> str | None:
    """None if heads of ``width`` elements can be stored in ``scheme``, else the reason."""
    if scheme.is_float:
        return None
    if width % ROWS:
        return f"packed caches need heads of a multiple of {ROWS} elements, not {width}"
    if scheme.group and width % scheme.group:
        return f"a group of {scheme.group} does not divide a head of {width}"
    if scheme.low and width % (2 * INPUT_MULTIPLE):
        return f"two widths need heads of a multiple of {2 * INPUT_MULTIPLE} elements, not {width}"
    return None
