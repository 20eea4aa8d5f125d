"""Byte dot products of decode attention on packed caches: the int8 side as rows of bytes, and chains of dots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, splat, store, vector, zero_registers
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.dot import Dot
from bitwright.codegen.vectormath import hold

SMALLEST = 2.0**-100
"""What is largest below this counts as zero (its reciprocal would overflow single precision)."""
_ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer that stands in the low mantissa bits
_ROUND_BITS = 0x4B400000


@dataclass(frozen=True)
class ByteRows:
    """The int8 side of dot products: ``i8[row, planes, width]``; with two planes, 128 * the first + the second."""

    buffer: Any
    planes: int

    def put_signed(self, row: Any, column: Any, whole: Any, lanes: int) -> None:
        """Store int32 lanes of at most LARGEST in magnitude."""
        byte, word = vector("int8", lanes), vector("int32", lanes)
        if self.planes == 1:
            store(self.buffer, T.cast(whole, byte), [row, 0, column], lanes)
            return
        seven = splat(T.int32(7), lanes)
        high = Registers(1, word)
        high[0] = (whole + splat(T.int32(64), lanes)) >> seven
        store(self.buffer, T.cast(high[0], byte), [row, 0, column], lanes)
        store(self.buffer, T.cast(whole - (high[0] << seven), byte), [row, 1, column], lanes)

    def put_rounded(self, row: Any, column: Any, value: Any, lanes: int) -> Any:
        """Store float32 lanes between 0 and 16383, rounded, as two planes of 7 bits; returns what they stand for."""
        word = vector("uint32", lanes)
        bits = Registers(1, word)
        bits[0] = T.reinterpret(value + splat(T.float32(_ROUND), lanes), dtype=word)
        mask = splat(T.uint32(127), lanes)
        for plane, part in enumerate(((bits[0] >> splat(T.uint32(7), lanes)) & mask, bits[0] & mask)):
            store(self.buffer, T.cast(part, vector("int8", lanes)), [row, plane, column], lanes)
        whole = T.reinterpret(bits[0] - splat(T.uint32(_ROUND_BITS), lanes), dtype=vector("int32", lanes))
        return T.cast(whole, vector("float32", lanes))

    def four(self, row: Any, plane: int, column: Any) -> Any:
        """Four neighbouring bytes as an int32."""
        return T.reinterpret(load(self.buffer, [row, plane, column], 4), dtype="int32")


def dot_rows(
    dot: Dot,
    rows: int,
    planes: int,
    vectors: int,
    steps: int,
    operand: Callable[[int, int], Any],
    four: Callable[[int, int, int], Any],
    totals: Registers,
    each: Callable[[int], None],
) -> None:
    """totals[(row * planes + plane) * vectors + v] += dot products over ``steps`` steps of four inputs.

    Args:
        operand: (v, step) -> codes.
        four: (row, plane, step) -> four activations.
        each: step -> None: what else to emit with a step: prefetches, which stall the core when they come in bursts.
    """
    length = min(dot.steps, steps)
    direct = dot.partial == totals.dtype
    for first in range(0, steps, length):
        partials = totals if direct else zero_registers(len(totals), dot.partial)
        for step in range(first, min(first + length, steps)):
            each(step)
            for v in range(vectors):
                codes = hold(dot.prepare(operand(v, step)))
                for index in range(planes * rows):
                    at = index * vectors + v
                    partials[at] = dot.step(partials[at], codes, four(*divmod(index, planes), step))
        if not direct:
            for index in range(len(totals)):
                totals[index] = totals[index] + dot.widen(partials[index])


def joined(totals: Registers, row: int, planes: int, v: int, vectors: int, lanes: int) -> Any:
    """The planes' sum as float lanes."""
    whole = totals[row * planes * vectors + v]
    if planes == 2:
        whole = (whole << splat(T.int32(7), lanes)) + totals[(row * 2 + 1) * vectors + v]
    return T.cast(whole, vector("float32", lanes))


def vectors_per_chain(isa: Isa, chains: int, most: int) -> int:
    """Vectors per chain of accumulators that the registers hold; a power of two, at most ``most``."""
    count = 1
    while 2 * count <= most and chains * 2 * count <= (24 if isa.registers == 32 else 12):
        count *= 2
    return count
