"""Dot products of 16-bit integers: pairs of products added to 32-bit lanes, twice as many per instruction as floats.

Numbers become *words*: integers of at most 16 bits, sharing a scale, chosen so narrow that no sum can overflow. Two
neighbours along the axis of the sum lie in one 32-bit lane, the first in its low half.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import llvm, load, splat, store, vector
from bitwright.codegen.isa import Isa
from bitwright.codegen.vectormath import hold

LARGEST_SUM = 2**31 - 1
LARGEST_WORD = 32767
SMALLEST = 2.0**-100
"""What is largest below this counts as zero (its reciprocal would overflow single precision)."""
_ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, whose low 16 bits are those of the sum


def largest_word(terms: int) -> int:
    """The largest magnitude of both factors with which a sum of ``terms`` products fits 32 bits."""
    return min(isqrt(LARGEST_SUM // terms), LARGEST_WORD)


@dataclass(frozen=True)
class WordDot:
    """What multiplies words on one instruction set."""

    isa: Isa

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector."""
        return self.isa.lanes

    def step(self, partial: Any, pairs: Any, pair: Any) -> Any:
        """partial + products of the pairs in int32 lanes and the pair in an int32 scalar, added up pair by pair."""
        words = vector("int16", 2 * self.lanes)
        left = T.reinterpret(pairs, dtype=words)
        right = T.reinterpret(splat(pair, self.lanes), dtype=words)
        lanes = vector("int32", self.lanes)
        if self.isa.dot == "vnni":
            return llvm(f"llvm.x86.avx512.vpdpwssd.{32 * self.lanes}", lanes, partial, left, right)
        return partial + llvm("llvm.x86.avx2.pmadd.wd", lanes, left, right)


def multiplies_words(isa: Isa) -> bool:
    """There is an instruction for it, and vectors are whole registers."""
    return isa.dot in ("vnni", "maddubs") and isa.lanes in (8, 16)


def rounded(value: Any, inverse: Any, lanes: int) -> Any:
    """int32 lanes whose low 16 bits hold value * inverse, rounded; of NaN any bits. The rest of the lane is noise."""
    total = value * inverse + splat(T.float32(_ROUND), lanes)
    return T.reinterpret(total, dtype=vector("int32", lanes))


def paired(low: Any, high: Any, lanes: int) -> Any:
    """Two results of ``rounded`` in one lane."""
    return (low & splat(T.int32(0xFFFF), lanes)) | (high << splat(T.int32(16), lanes))


def put_words(buffer: Any, bits: Any, at: list[Any], lanes: int) -> None:
    """Store results of ``rounded`` as neighbours in an int16 buffer."""
    store(buffer, T.cast(bits, vector("int16", lanes)), at, lanes)


def pair_of(buffer: Any, row: Any, first: Any) -> Any:
    """Two neighbours of an int16 buffer as an int32 scalar."""
    return T.reinterpret(load(buffer, [row, first], 2), dtype="int32")


def scaling(largest: Any, limit: int, lanes: int) -> tuple[Any, Any]:
    """(inverse, factor) by which numbers up to ``largest`` become words up to ``limit``, and words numbers again.

    Both are 0 where ``largest`` is tiny or NaN.
    """
    live = hold(largest) > splat(T.float32(SMALLEST), lanes)
    zero = splat(T.float32(0), lanes)
    inverse = T.Select(live, splat(T.float32(limit), lanes) / largest, zero)
    return hold(inverse), hold(T.Select(live, largest * splat(T.float32(1 / limit), lanes), zero))
