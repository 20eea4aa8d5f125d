"""The peak of byte dot products: the ceiling of every prefill kernel, measured by a loop that only multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.autotune.timing import aligned, median_seconds
from bitwright.codegen.isa import Isa

STEPS = 1 << 16
"""Steps of the loop in one call."""

_ROWS = 4
_COLUMNS = 3
_CODES = 64
"""Sets of activations that the loop goes round; a power of two."""


def products_per_step(isa: Isa) -> int:
    """Multiply-adds of one step of one thread's loop."""
    return _ROWS * _COLUMNS * 4 * isa.lanes


def build_dot_peak(isa: Isa, bits: int = 4, name: str = "dot_peak") -> Any:
    """PrimFunc (codes u8[3, 4 * lanes], activations i8[64, 16], out i32[threads, lanes]).

    Every thread (there are as many as ``out`` has rows) accumulates 4 x 3 vectors of dot products, ``STEPS`` times. The
    codes stay in registers; four broadcasts of activations serve twelve dot products, so that no other unit of the
    machine is the bottleneck, and no compiler can move the products out of the loop.

    Args:
        bits: of the codes, on which the instruction sequence of AVX2 depends.
    """
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import Registers, kernel, load, loop, store, symbol, zero_registers
    from bitwright.codegen.linear.dot import dot_of
    from bitwright.codegen.linear.int8_group import packed_x

    dot, lanes = dot_of(isa, bits), isa.lanes
    with kernel(name) as function:
        codes = function.tensor("codes", (_COLUMNS, 4 * lanes), "uint8")
        activations = function.tensor("activations", (_CODES, 4 * _ROWS), "int8")
        out = function.tensor("out", (symbol("threads"), lanes), "int32")

        def accumulate(thread: Any) -> None:
            operands = Registers(_COLUMNS, f"uint8x{4 * lanes}")
            for column in range(_COLUMNS):
                operands[column] = load(codes, [column, 0], 4 * lanes)
            partials = zero_registers(_ROWS * _COLUMNS, dot.partial)
            with loop(STEPS) as step:
                for row in range(_ROWS):
                    x4 = packed_x(activations, T.bitwise_and(step, T.int64(_CODES - 1)), 4 * row)
                    for column in range(_COLUMNS):
                        index = row * _COLUMNS + column
                        partials[index] = dot.step(partials[index], operands[column], x4)
            total = dot.widen(partials[0])
            for index in range(1, len(partials)):
                total = total + dot.widen(partials[index])
            store(out, total, [thread, 0], lanes)

        threads = out.shape[0]
        with T.If(threads == T.int64(1)):
            with T.Then():  # without the cost of starting a parallel loop
                accumulate(T.int64(0))
            with T.Else(), loop(threads, "parallel") as thread:
                accumulate(thread)
    return function.func


@dataclass(frozen=True)
class DotPeak:
    """Multiply-adds of bytes per second of ``threads`` threads together."""

    threads: int
    macs_per_second: float


def measure_dot_peak(multiply: Any, isa: Isa, threads: int, *, seconds: float = 0.1) -> DotPeak:
    """The median over ``seconds`` of the compiled function of ``build_dot_peak(isa)``."""
    import tvm_ffi

    codes = aligned(_COLUMNS * 4 * isa.lanes).reshape(_COLUMNS, -1)
    codes.fill(1)
    activations = aligned(_CODES * 4 * _ROWS).view(np.int8).reshape(_CODES, -1)
    activations.fill(1)
    out = aligned(4 * threads * isa.lanes).view(np.int32).reshape(threads, -1)
    arguments = tuple(tvm_ffi.from_dlpack(array) for array in (codes, activations, out))
    taken = median_seconds(multiply, arguments, seconds)
    return DotPeak(threads, threads * STEPS * products_per_step(isa) / taken)
