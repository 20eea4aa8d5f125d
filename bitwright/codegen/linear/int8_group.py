"""The integer part shared by decode and prefill: sums of code * activation over a chunk of 32 inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, splat
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.dot import Dot

CHUNK_STEPS = INPUT_MULTIPLE // 4
"""Steps of four inputs in a chunk."""


def packed_x(x8: Any, row: Any, k: Any) -> Any:
    """Four int8 activations, inputs k .. k+3, as one int32 scalar."""
    return T.reinterpret(load(x8, [row, k], 4), dtype="int32")


def accumulate_chunk(
    dot: Dot,
    totals: Registers,
    rows: int,
    blocks: int,
    operand: Callable[[int, int], Any],
    activation: Callable[[int, int], Any],
) -> None:
    """totals[row * blocks + block] += the chunk's dot products.

    Args:
        operand: (block, step) -> prepared codes.
        activation: (row, step) -> four activations.
    """
    if dot.steps >= CHUNK_STEPS and dot.partial == totals.dtype:
        _chain(dot, totals, range(CHUNK_STEPS), rows, blocks, operand, activation)
        return
    for first in range(0, CHUNK_STEPS, dot.steps):
        partials = Registers(rows * blocks, dot.partial)
        lanes = int(dot.partial.rpartition("x")[2])
        for index in range(rows * blocks):
            partials[index] = splat(T.int16(0), lanes)
        _chain(dot, partials, range(first, min(first + dot.steps, CHUNK_STEPS)), rows, blocks, operand, activation)
        for index in range(rows * blocks):
            totals[index] = totals[index] + dot.widen(partials[index])


def _chain(
    dot: Dot,
    partials: Registers,
    steps: range,
    rows: int,
    blocks: int,
    operand: Callable[[int, int], Any],
    activation: Callable[[int, int], Any],
) -> None:
    for step in steps:
        for block in range(blocks):
            for row in range(rows):
                index = row * blocks + block
                partials[index] = dot.step(partials[index], operand(block, step), activation(row, step))


def offset_of_group(dot: Dot, zero: Any, activation_sum: Any) -> Any:
    """What centres a group's total: (bias - zero) * sum of its activations, int32 x lanes."""
    return (splat(T.int32(dot.bias), dot.lanes) - zero) * splat(activation_sum, dot.lanes)
