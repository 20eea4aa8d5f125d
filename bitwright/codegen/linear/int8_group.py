"""The integer part shared by decode and prefill: sums of code * activation over a chunk of 32 inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, splat, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.dot import Dot

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


def centred(dot: Dot, total: Any, offset: Any, activation_sum: Any) -> Any:
    """total + offset * sum of the group's activations, where offset is ``dot.bias`` - zero point.

    Args:
        offset: an int (symmetric schemes: known while building) or int32 x lanes.
    """
    if isinstance(offset, int):
        return total + dot.spread(activation_sum) * splat(T.int32(offset), dot.lanes) if offset else total
    return total + offset * dot.spread(activation_sum)
