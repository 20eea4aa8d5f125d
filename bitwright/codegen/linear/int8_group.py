"""The integer part shared by decode and prefill: sums of code * activation over a chunk of 32 inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, splat, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.dot import Dot
from bitwright.codegen.quantized_rows import LARGEST, LOW_BITS

CHUNK_STEPS = INPUT_MULTIPLE // 4
"""Steps of four inputs in a chunk."""

MIN_LOOP_STEPS = 4
"""Shorter chains are not worth a loop."""


def packed_x(x8: Any, row: Any, k: Any) -> Any:
    """Four int8 activations, inputs k .. k+3, as one int32 scalar."""
    return T.reinterpret(load(x8, [row, k], 4), dtype="int32")


def accumulate_chunk(
    dot: Dot,
    totals: Registers,
    rows: int,
    blocks: int,
    operand: Callable[[int, Any], Any],
    activation: Callable[[int, Any], Any],
    *,
    unroll: bool,
) -> None:
    """totals[row * blocks + block] += the chunk's dot products.

    Args:
        operand: (block, step) -> prepared codes.
        activation: (row, step) -> four activations.
        unroll: steps become straight-line code, else a loop. A loop keeps many accumulators in registers: in
            straight-line code LLVM finishes one accumulator after the other and spills the operands that they share.
    """
    length = min(dot.steps, CHUNK_STEPS)

    def chain(first: Any) -> None:
        direct = dot.partial == totals.dtype
        partials = totals if direct else zero_registers(rows * blocks, dot.partial)
        if unroll or length < MIN_LOOP_STEPS:
            for step in range(length):
                _step(dot, partials, first + step, rows, blocks, operand, activation)
        else:
            with loop(length) as step:
                _step(dot, partials, first + step, rows, blocks, operand, activation)
        if direct:
            return
        for index in range(rows * blocks):
            totals[index] = totals[index] + dot.widen(partials[index])

    if unroll or length == CHUNK_STEPS:
        for first in range(0, CHUNK_STEPS, length):
            chain(first)
    else:
        with loop(CHUNK_STEPS // length) as index:
            chain(index * length)


def _step(
    dot: Dot,
    partials: Registers,
    step: Any,
    rows: int,
    blocks: int,
    operand: Callable[[int, Any], Any],
    activation: Callable[[int, Any], Any],
) -> None:
    for block in range(blocks):
        for row in range(rows):
            index = row * blocks + block
            partials[index] = dot.step(partials[index], operand(block, step), activation(row, step))


def group_total(dot: Dot, sums: Sequence[Any], offset: Any, activation_sum: Any, group: int) -> Any:
    """Sum of (code - zero) * activation over a group, f32 x lanes.

    Args:
        sums: int32 x lanes, sums of code * term, for each term of the activations.
        offset: ``dot.bias`` - zero point: an int (symmetric schemes: known while building) or int32 x lanes.
        activation_sum: scalar int32, the sum of the activations.
        group: number of inputs.

    With two terms the sums are combined as integers if int32 holds every possible result, else in single precision.
    """
    single = vector("float32", dot.lanes)
    if len(sums) == 1 or group * ((1 << dot.bits) - 1) * LARGEST[len(sums)] < 1 << 31:
        return T.cast(centred(dot, _combined(dot, sums), offset, activation_sum), single)
    high, low = (T.cast(value, single) for value in sums)
    total = high * splat(T.float32(1 << LOW_BITS), dot.lanes) + low
    if isinstance(offset, int):
        return total + splat(T.cast(activation_sum, "float32") * T.float32(offset), dot.lanes) if offset else total
    return total + T.cast(offset, single) * splat(T.cast(activation_sum, "float32"), dot.lanes)


def _combined(dot: Dot, sums: Sequence[Any]) -> Any:
    if len(sums) == 1:
        return sums[0]
    high, low = sums
    return (high << splat(T.int32(LOW_BITS), dot.lanes)) + low


def centred(dot: Dot, total: Any, offset: Any, activation_sum: Any) -> Any:
    if isinstance(offset, int):
        return total + dot.spread(activation_sum) * splat(T.int32(offset), dot.lanes) if offset else total
    return total + offset * dot.spread(activation_sum)
