"""One token: y = W x. Weights stream through once and are unpacked in registers; the time is that of reading them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, prefetch, splat, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.dot import Dot
from bitwright.codegen.linear.int8_group import accumulate_chunk, centred, finish_group, fits_int32, packed_x
from bitwright.codegen.linear.lookup import looked_up, wraps
from bitwright.codegen.linear.unpack import (
    field_codes,
    field_position,
    group_offset,
    group_scale,
    step_codes,
    widen_half,
)

LINE_BYTES = 64
"""Of a cache line, which one prefetch asks for."""


def decode_packed(args: Arguments, tile: Any) -> None:
    """Packed weights and quantized activations: one tile of results."""
    layout, lanes, terms = args.layout, args.layout.lanes, args.terms
    dot = args.dot
    prepared = looked_up(args, dot.prepare)
    results = zero_registers(layout.blocks, vector("float32", lanes))
    span = args.schedule.fitting_span(layout.group)
    spans, units = layout.group // span, span // layout.unit
    sums = _sums_in_place if dot.in_place else _sums_moved

    with loop(layout.groups) as group:
        offsets = [group_offset(args.zeros, layout, dot.bias, tile, group, block) for block in range(layout.blocks)]
        starts = offsets if fits_int32(dot, terms, layout.group) else None
        activation_sum = args["sum"][0, group]
        prefetch_scales(args, tile, group)
        if spans == 1:
            prefetch_codes(args, tile, group * units, units)
            totals = sums(args, dot, prepared, tile, group * units, units, starts, activation_sum)
        else:
            totals = _start(args, dot, starts, activation_sum)
            with loop(spans) as index:
                first_unit = (group * spans + index) * units
                prefetch_codes(args, tile, first_unit, units)
                part = sums(args, dot, prepared, tile, first_unit, units, None, None)
                for sum_index in range(len(totals)):
                    totals[sum_index] = totals[sum_index] + part[sum_index]
        for block in range(layout.blocks):
            sums_of_terms = [totals[term * layout.blocks + block] for term in range(terms)]
            total = finish_group(dot, sums_of_terms, layout.group, offsets[block], activation_sum)
            scale = group_scale(args["scales"], args.isa, tile, group, block) * splat(args["scale"][0, group], lanes)
            results[block] = results[block] + total * scale
    for block in range(layout.blocks):
        args.write(0, tile, block, results[block])


def prefetch_codes(args: Arguments, tile: Any, first_unit: Any, units: int) -> None:
    """Ask for as many lines of codes as a span has, the schedule's distance ahead in the stream."""
    layout, distance = args.layout, args.schedule.prefetch
    if not distance:
        return
    per_unit = layout.blocks * layout.lines
    for line in range(0, units * per_unit, LINE_BYTES // (4 * layout.lanes)):
        unit, rest = divmod(line + distance // (4 * layout.lanes), per_unit)
        block, inner = divmod(rest, layout.lines)
        prefetch(
            args["codes"][tile, first_unit + unit, T.int64(block), T.int64(inner), T.int64(0)],
            args.schedule.prefetch_level,
        )


def prefetch_scales(args: Arguments, tile: Any, group: Any) -> None:
    """Ask for the scales and zero points of the group whose codes lie the schedule's distance ahead."""
    layout, distance = args.layout, args.schedule.prefetch
    if not distance:
        return
    ahead = -(-distance // (layout.group * layout.weight.bits // 8 * layout.rows))
    for tensor in layout.tensors:
        if tensor.name in ("scales", "zeros"):
            per_line = LINE_BYTES * layout.rows // (tensor.nbytes // (layout.tiles * layout.groups))
            for row in range(0, layout.rows, per_line):
                block, lane = divmod(row, layout.lanes)
                prefetch(
                    args[tensor.name][tile, group + ahead, T.int64(block), T.int64(lane)], args.schedule.prefetch_level
                )


def _start(args: Arguments, dot: Dot, offsets: list[Any] | None, activation_sum: Any, position: int = 0) -> Registers:
    """int32 sums of each term and block, term by term: zero, and for the last term offset * sum * 2**position."""
    totals = zero_registers(args.terms * args.layout.blocks, vector("int32", args.layout.lanes))
    if offsets is None:
        return totals
    start = activation_sum << T.int32(position) if position else activation_sum
    last = (args.terms - 1) * args.layout.blocks
    for block, offset in enumerate(offsets):
        totals[last + block] = centred(dot, totals[last + block], offset, start)
    return totals


def _sums_in_place(
    args: Arguments,
    dot: Dot,
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
    layout, lanes = args.layout, args.layout.lanes
    # What is looked up is a byte, wherever the code lay.
    place = [0 if layout.weight.is_codebook else field_position(layout, step) for step in range(len(layout.fields))]
    positions = sorted(set(place), reverse=True)
    totals = _start(args, dot, offsets, activation_sum, positions[0])
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
                    place_of = (tile, first_unit + unit, block, step, position)
                    operand = prepared(field_codes(args["codes"], layout, *place_of, any_above=wraps(args)))
                    for term in range(args.terms):
                        index = term * layout.blocks + block
                        chain[index] = dot.step(chain[index], operand, x4[term])
            if chain is not totals:
                for index in range(len(totals)):
                    totals[index] = totals[index] + chain[index]
    return totals


def _sums_moved(
    args: Arguments,
    dot: Dot,
    prepared: Callable[[Any], Any],
    tile: Any,
    first_unit: Any,
    units: int,
    offsets: list[Any] | None,
    activation_sum: Any,
) -> Registers:
    """The same where operands must stay small: every code is moved to bit 0."""
    layout = args.layout
    totals = _start(args, dot, offsets, activation_sum)

    def operand(block: int, step: int) -> Any:
        unit, inner = divmod(step, layout.unit // 4)
        return prepared(step_codes(args["codes"], layout, tile, first_unit + unit, block, inner))

    def activation(term: int, step: int) -> Any:
        return packed_x(args["x8"], 0, first_unit * layout.unit + 4 * step + term * layout.inputs)

    for chunk in range(units * layout.unit // INPUT_MULTIPLE):
        steps = chunk * (INPUT_MULTIPLE // 4)
        accumulate_chunk(
            dot,
            totals,
            args.terms,
            layout.blocks,
            lambda block, step, steps=steps: operand(block, steps + step),  # type: ignore[misc]
            lambda term, step, steps=steps: activation(term, steps + step),  # type: ignore[misc]
            unroll=True,
        )
    return totals


def decode_float(args: Arguments, tile: Any) -> None:
    """Float weights: a multiply-add per weight."""
    layout, lanes = args.layout, args.layout.lanes
    results = zero_registers(layout.blocks, vector("float32", lanes))

    def step(k: Any) -> None:
        for block in range(layout.blocks):
            weight = load_weight(args, tile, k, block)
            results[block] = results[block] + weight * splat(args["x"][0, k], lanes)

    unroll = 4 if layout.inputs % 4 == 0 else 1
    with loop(layout.inputs // unroll) as outer:
        for inner in range(unroll):
            step(outer * unroll + inner)
    for block in range(layout.blocks):
        args.write(0, tile, block, results[block])


def load_weight(args: Arguments, tile: Any, k: Any, block: int) -> Any:
    """f32 x lanes of float weights."""
    lanes = args.layout.lanes
    value = load(args["weights"], [tile, k, block * lanes], lanes)
    return widen_half(value, args.isa, lanes) if args.layout.weight.bits == 16 else value
