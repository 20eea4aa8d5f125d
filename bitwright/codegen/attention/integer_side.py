"""The other side of the codes in decode attention on packed caches: queries, or weights, as integers.

======================= ================= =====================================================================
side                    largest           four inputs take
======================= ================= =====================================================================
``ByteSide``, one plane 127               a byte dot product
``ByteSide``, two       127 * 128         two of them, each with an accumulator: 128 * the first byte + the second
``WordSide``            127 * 128         two 16-bit dot products with one accumulator: without VNNI that is half
                                          as many instructions as byte dot products that must not saturate
======================= ================= =====================================================================

Numbers that are not negative may be as large as 128**2 - 1 on the sides of two bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.word_dot import WordDot, pair_of
from bitwright.codegen.builder import Registers, load, loop, splat, store, vector, zero_registers
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.dot import UNBOUNDED, Dot, dot_of
from bitwright.codegen.vectormath import hold

SMALLEST = 2.0**-100
"""What is largest below this counts as zero (its reciprocal would overflow single precision)."""
LARGEST_BYTE = 127
LARGEST_PAIR = 127 * 128


class IntegerSide(Protocol):
    """Rows of integers in scratch, stored a vector of int32 lanes at a time."""

    @property
    def chains(self) -> int:
        """Accumulators per row."""

    @property
    def partial(self) -> str:
        """Their dtype."""

    @property
    def steps(self) -> int:
        """Steps after which an accumulator must be widened."""

    def put(self, row: Any, column: Any, whole: Any) -> None:
        """Store int32 lanes of either sign from ``column`` on."""

    def put_weights(self, row: Any, column: Any, whole: Any) -> None:
        """The same of lanes that are not negative."""

    def clear(self, row: Any) -> None:
        """Fill a row with zeros."""

    def prepare(self, codes: Any) -> Sequence[Any]:
        """What ``step`` takes of codes u8 x (4 * lanes)."""

    def step(self, partial: Any, operands: Sequence[Any], row: Any, chain: int, column: Any) -> Any:
        """partial + dot of codes with the integers of columns ``column .. column + 3``."""

    def widen(self, partial: Any) -> Any:
        """An accumulator as int32 lanes."""

    def joined(self, chains: Sequence[Any]) -> Any:
        """The int32 lanes of a row's chains as float lanes of what they stand for."""


class ByteSide:
    """``i8[rows, planes, width]``: with two planes, 128 * the first + the second."""

    def __init__(self, buffer: Any, dot: Dot, planes: int) -> None:
        self.buffer, self.dot, self.chains = buffer, dot, planes
        self.partial, self.steps = dot.partial, dot.steps

    def put(self, row: Any, column: Any, whole: Any) -> None:
        if self.chains == 1:
            self._put([row, 0, column], whole)
            return
        seven = splat(T.int32(7), self.dot.lanes)
        high = hold((whole + splat(T.int32(64), self.dot.lanes)) >> seven)
        self._put([row, 0, column], high)
        self._put([row, 1, column], whole - (high << seven))

    def put_weights(self, row: Any, column: Any, whole: Any) -> None:
        if self.chains == 1:
            self._put([row, 0, column], whole)
            return
        self._put([row, 0, column], whole >> splat(T.int32(7), self.dot.lanes))
        self._put([row, 1, column], whole & splat(T.int32(127), self.dot.lanes))

    def _put(self, at: list[Any], whole: Any) -> None:
        store(self.buffer, T.cast(whole, vector("int8", self.dot.lanes)), at, self.dot.lanes)

    def clear(self, row: Any) -> None:
        with loop(self.chains) as plane, loop(self.buffer.shape[-1]) as column:
            T.buffer_store(self.buffer, T.int8(0), [row, plane, column])

    def prepare(self, codes: Any) -> Sequence[Any]:
        return (hold(self.dot.prepare(codes)),)

    def step(self, partial: Any, operands: Sequence[Any], row: Any, chain: int, column: Any) -> Any:
        four = T.reinterpret(load(self.buffer, [row, chain, column], 4), dtype="int32")
        return self.dot.step(partial, operands[0], four)

    def widen(self, partial: Any) -> Any:
        return self.dot.widen(partial)

    def joined(self, chains: Sequence[Any]) -> Any:
        lanes, whole = self.dot.lanes, chains[0]
        if self.chains == 2:
            whole = (whole << splat(T.int32(7), lanes)) + chains[1]
        return T.cast(whole, vector("float32", lanes))


class WordSide:
    """``i16[rows, width]``, in the order in which codes are split: of every four, the first, third, second, fourth."""

    chains, steps = 1, UNBOUNDED

    def __init__(self, buffer: Any, isa: Isa) -> None:
        self.buffer, self.dot, self.lanes = buffer, WordDot(isa), isa.lanes
        self.partial = vector("int32", isa.lanes)

    def put(self, row: Any, column: Any, whole: Any) -> None:
        order = [four + place for four in range(0, self.lanes, 4) for place in (0, 2, 1, 3)]
        words = T.cast(T.Shuffle([whole], order), vector("int16", self.lanes))
        store(self.buffer, words, [row, column], self.lanes)

    put_weights = put

    def clear(self, row: Any) -> None:
        with loop(self.buffer.shape[-1]) as column:
            T.buffer_store(self.buffer, T.int16(0), [row, column])

    def prepare(self, codes: Any) -> Sequence[Any]:
        words = T.reinterpret(codes, dtype=vector("uint16", 2 * self.lanes))
        odd = words >> splat(T.uint16(8), 2 * self.lanes)
        return hold(words & splat(T.uint16(255), 2 * self.lanes)), hold(odd)

    def step(self, partial: Any, operands: Sequence[Any], row: Any, chain: int, column: Any) -> Any:
        for place, pairs in enumerate(operands):
            partial = self.dot.step(partial, pairs, pair_of(self.buffer, row, column + 2 * place))
        return partial

    def widen(self, partial: Any) -> Any:
        return partial

    def joined(self, chains: Sequence[Any]) -> Any:
        return T.cast(chains[0], vector("float32", self.lanes))


def byte_side(isa: Isa, bits: int, rows: int, width: int) -> IntegerSide:
    """Integers of one byte, to be multiplied with codes of ``bits``."""
    return ByteSide(T.alloc_buffer((rows, 1, width), "int8"), dot_of(isa, bits), 1)


def pair_side(isa: Isa, bits: int, rows: int, width: int) -> IntegerSide:
    """Integers of two bytes."""
    if isa.dot == "maddubs":
        return WordSide(T.alloc_buffer((rows, width), "int16"), isa)
    return ByteSide(T.alloc_buffer((rows, 2, width), "int8"), dot_of(isa, bits), 2)


def dot_rows(
    side: IntegerSide,
    rows: int,
    vectors: int,
    steps: int,
    operand: Callable[[int, int], Any],
    place: Callable[[int, int], tuple[Any, Any]],
    totals: Registers,
    each: Callable[[int], None],
) -> None:
    """totals[(row * chains + chain) * vectors + v] += dot products over ``steps`` steps of four inputs.

    Args:
        operand: (v, step) -> codes.
        place: (row, step) -> the row and the column of the side's integers.
        each: step -> None: what else to emit with a step: prefetches, which stall the core when they come in bursts.
    """
    length = min(side.steps, steps)
    direct = side.partial == totals.dtype
    for first in range(0, steps, length):
        partials = totals if direct else zero_registers(len(totals), side.partial)
        for step in range(first, min(first + length, steps)):
            each(step)
            for v in range(vectors):
                operands = side.prepare(operand(v, step))
                for row in range(rows):
                    at, column = place(row, step)
                    for chain in range(side.chains):
                        index = (row * side.chains + chain) * vectors + v
                        partials[index] = side.step(partials[index], operands, at, chain, column)
        if not direct:
            for index in range(len(totals)):
                totals[index] = totals[index] + side.widen(partials[index])


def total_of(side: IntegerSide, totals: Registers, row: int, v: int, vectors: int) -> Any:
    """What a row's chains of vector ``v`` add up to, as float lanes."""
    return side.joined([totals[(row * side.chains + chain) * vectors + v] for chain in range(side.chains)])


def vectors_per_chain(isa: Isa, chains: int, most: int) -> int:
    """Vectors per chain of accumulators; a power of two, at most ``most``.

    Of 16 registers eight hold accumulators: a step's codes, masks and integers need the others.
    """
    count = 1
    while 2 * count <= most and chains * 2 * count <= (24 if isa.registers == 32 else 8):
        count *= 2
    return count
