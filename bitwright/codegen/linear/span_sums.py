"""Integer sums of one token over a span of inputs, step by step: each step of all vectors of outputs of a tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, splat, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.int8_group import accumulate_chunk, centred, packed_x
from bitwright.codegen.linear.lookup import wraps
from bitwright.codegen.linear.unpack import field_codes, lines_of, step_codes


def start_sums(args: Arguments, offsets: list[Any] | None, activation_sum: Any, position: int = 0) -> Registers:
    """int32 sums of each term and block, term by term: zero, and for the last term offset * sum * 2**position."""
    totals = zero_registers(args.terms * args.layout.blocks, vector("int32", args.layout.lanes))
    if offsets is None:
        return totals
    start = activation_sum << T.int32(position) if position else activation_sum
    last = (args.terms - 1) * args.layout.blocks
    for block, offset in enumerate(offsets):
        totals[last + block] = centred(args.dot, totals[last + block], offset, start)
    return totals


def sums_in_place(
    args: Arguments,
    prepared: Callable[[Any], Any],
    tile: Any,
    first_unit: Any,
    units: int,
    offsets: list[Any] | None,
    activation_sum: Any,
) -> Registers:
    """Sums of code * activation (plus offset * sum of activations) over a span, codes multiplied where they lie.

    A code at bit p of its byte counts 2**p times. So codes of each position are summed apart, the highest position's
    sums are shifted down to the next and added, and so on: exact, and a shift per position instead of one per code.
    Sums are cut into short chains, because a dot product has to wait for the one before it in its chain.
    """
    layout, lanes, dot = args.layout, args.layout.lanes, args.dot
    place = layout.positions
    positions = sorted(set(place), reverse=True)
    totals = start_sums(args, offsets, activation_sum, positions[0])
    for position, above in zip(positions, [positions[0], *positions], strict=False):
        steps = [(unit, step) for unit in range(units) for step in range(len(layout.fields)) if place[step] == position]
        if position != above:
            for index in range(len(totals)):
                totals[index] = totals[index] >> splat(T.int32(above - position), lanes)
        for first in range(0, len(steps), args.schedule.chain):
            chain = totals if first == 0 and position == positions[0] else zero_registers(len(totals), totals.dtype)
            for unit, step in steps[first : first + args.schedule.chain]:
                k = (first_unit + unit) * layout.unit + 4 * step
                x4 = [packed_x(args["x8"], 0, k + term * layout.inputs) for term in range(args.terms)]
                for block in range(layout.blocks):
                    lines = lines_of(args["codes"], layout, tile, first_unit + unit, block)
                    operand = prepared(field_codes(lines, layout, step, position, any_above=wraps(args)))
                    for term in range(args.terms):
                        index = term * layout.blocks + block
                        chain[index] = dot.step(chain[index], operand, x4[term])
            if chain is not totals:
                for index in range(len(totals)):
                    totals[index] = totals[index] + chain[index]
    return totals


def sums_moved(
    args: Arguments,
    prepared: Callable[[Any], Any],
    tile: Any,
    first_unit: Any,
    units: int,
    offsets: list[Any] | None,
    activation_sum: Any,
) -> Registers:
    """The same where operands must stay small: every code is moved to bit 0."""
    layout = args.layout
    totals = start_sums(args, offsets, activation_sum)

    def operand(block: int, step: int) -> Any:
        unit, inner = divmod(step, layout.unit // 4)
        return prepared(step_codes(lines_of(args["codes"], layout, tile, first_unit + unit, block), layout, inner))

    def activation(term: int, step: int) -> Any:
        return packed_x(args["x8"], 0, first_unit * layout.unit + 4 * step + term * layout.inputs)

    for chunk in range(units * layout.unit // INPUT_MULTIPLE):
        steps = chunk * (INPUT_MULTIPLE // 4)
        accumulate_chunk(
            args.dot,
            totals,
            args.terms,
            layout.blocks,
            lambda block, step, steps=steps: operand(block, steps + step),  # type: ignore[misc]
            lambda term, step, steps=steps: activation(term, steps + step),  # type: ignore[misc]
            unroll=True,
        )
    return totals
