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


def chain_length(longest: int, steps: int) -> int:
    """The longest even chain, of at most ``longest`` steps, whose multiples make up ``steps``; both are even."""
    return next(n for n in range(min(longest, steps), 0, -2) if steps % n == 0)


def accumulate_chunk(
    dot: Dot,
    totals: Registers,
    rows: int,
    blocks: int,
    operand: Callable[[int, Any], Any],
    activation: Callable[[int, Any], Any],
    *,
    unroll: bool,
    chunks: int = 1,
) -> None:
    """totals[row * blocks + block] += the chunk's dot products.

    Args:
        operand: (block, step) -> prepared codes.
        activation: (row, step) -> four activations.
        unroll: steps become straight-line code, else a loop. A loop keeps many accumulators in registers: in
            straight-line code LLVM finishes one accumulator after the other and spills the operands that they share.
        chunks: so many, one after the other. One loop: of a loop of chunks LLVM unrolls the steps, and loads
            activations too early to keep them.
    """
    most = CHUNK_STEPS * chunks
    length = chain_length(dot.steps, most)

    def chain(first: Any) -> None:
        direct = dot.partial == totals.dtype
        partials = totals if direct else zero_registers(rows * blocks, dot.partial)
        if unroll or length < MIN_LOOP_STEPS:
            for step in range(length):
                _step(dot, partials, first + step, rows, blocks, operand, activation)
        else:
            with loop(length // 2) as pair:
                for step in range(2):
                    _step(dot, partials, first + (pair * 2 + step), rows, blocks, operand, activation)
        if direct:
            return
        for index in range(rows * blocks):
            totals[index] = totals[index] + dot.widen(partials[index])

    if unroll or length == most:
        for first in range(0, most, length):
            chain(first)
    else:
        with loop(most // length) as index:
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


def fits_int32(dot: Dot, terms: int, group: int) -> bool:
    """Every sum of code * activation over a group is an int32, its terms taken together."""
    return terms == 1 or group * ((1 << dot.bits) - 1) * LARGEST[terms] < 1 << 31


def centred(dot: Dot, total: Any, offset: Any, activation_sum: Any) -> Any:
    """total + offset * sum of the group's activations, where offset is ``dot.bias`` - zero point.

    Args:
        offset: an int (symmetric schemes: known while building) or int32 x lanes.
    """
    if isinstance(offset, int):
        return total + dot.scaled(activation_sum, offset) if offset else total
    return total + offset * dot.spread(activation_sum)


def start_group(dot: Dot, terms: int, group: int, offset: Any, activation_sum: Any) -> list[Any]:
    """What the int32 sums of each term of a group begin with, so that what they come to is centred.

    Nothing where two terms may not be combined as integers: ``finish_group`` centres those.
    """
    zero = splat(T.int32(0), dot.lanes)
    if not fits_int32(dot, terms, group):
        return [zero] * terms
    return [*[zero] * (terms - 1), centred(dot, zero, offset, activation_sum)]


def finish_group(dot: Dot, sums: Sequence[Any], group: int, offset: Any, activation_sum: Any) -> Any:
    """Sum of (code - zero) * activation over a group, f32 x lanes, from the sums that ``start_group`` began.

    Integers as long as int32 holds every possible sum, else the two terms meet in single precision.
    """
    single = vector("float32", dot.lanes)
    if len(sums) == 1:
        return T.cast(sums[0], single)
    if fits_int32(dot, len(sums), group):
        return T.cast((sums[0] << splat(T.int32(LOW_BITS), dot.lanes)) + sums[1], single)
    high, low = (T.cast(value, single) for value in sums)
    activations = splat(T.cast(activation_sum, "float32"), dot.lanes)
    offset = splat(T.float32(offset), dot.lanes) if isinstance(offset, int) else T.cast(offset, single)
    return (high * splat(T.float32(1 << LOW_BITS), dot.lanes) + low) + offset * activations
