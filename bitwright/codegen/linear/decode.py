"""One token: y = W x. Weights stream through once and are unpacked in registers; the time is that of reading them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, prefetch, splat, store, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.dot import Dot, dot_of
from bitwright.codegen.linear.int8_group import accumulate_chunk, centred, packed_x
from bitwright.codegen.linear.lookup import looked_up
from bitwright.codegen.linear.unpack import (
    byte_weight,
    code_of_byte,
    field_codes,
    field_position,
    group_offset,
    group_scale,
    step_codes,
    widen_half,
)

LINE_BYTES = 64
"""Of a cache line, which one prefetch asks for."""


def decode_int8(args: Arguments, tile: Any) -> None:
    """Packed weights and int8 activations: one tile of results."""
    layout, lanes = args.layout, args.layout.lanes
    dot = dot_of(args.isa, layout.weight.operand_bits)
    prepared = looked_up(args, dot.prepare)
    results = zero_registers(layout.blocks, vector("float32", lanes))
    span = args.schedule.fitting_span(layout.group)
    spans, units = layout.group // span, span // layout.unit
    sums = _sums_in_place if dot.in_place else _sums_moved

    with loop(layout.groups) as group:
        offsets = [group_offset(args.zeros, layout, dot.bias, tile, group, block) for block in range(layout.blocks)]
        activation_sum = args["sum"][0, group]
        prefetch_scales(args, tile, group)
        if spans == 1:
            prefetch_codes(args, tile, group * units, units)
            totals = sums(args, dot, prepared, tile, group * units, units, offsets, activation_sum)
        else:
            totals = zero_registers(layout.blocks, vector("int32", lanes))
            for block, offset in enumerate(offsets):
                totals[block] = centred(dot, totals[block], offset, activation_sum)
            with loop(spans) as index:
                first_unit = (group * spans + index) * units
                prefetch_codes(args, tile, first_unit, units)
                part = sums(args, dot, prepared, tile, first_unit, units, None, None)
                for block in range(layout.blocks):
                    totals[block] = totals[block] + part[block]
        for block in range(layout.blocks):
            scale = group_scale(args["scales"], args.isa, tile, group, block) * splat(args["scale"][0, group], lanes)
            results[block] = results[block] + T.cast(totals[block], vector("float32", lanes)) * scale
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
        prefetch(args["codes"][tile, first_unit + unit, T.int64(block), T.int64(inner), T.int64(0)])


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
                prefetch(args[tensor.name][tile, group + ahead, T.int64(block), T.int64(lane)])


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
    totals = zero_registers(layout.blocks, vector("int32", lanes))
    if offsets is not None:
        start = activation_sum << T.int32(positions[0]) if positions[0] else activation_sum
        for block, offset in enumerate(offsets):
            totals[block] = centred(dot, totals[block], offset, start)
    for position, above in zip(positions, [positions[0], *positions], strict=False):
        steps = [(unit, step) for unit in range(units) for step in range(len(layout.fields)) if place[step] == position]
        if position != above:
            for block in range(layout.blocks):
                totals[block] = totals[block] >> splat(T.int32(above - position), lanes)
        for first in range(0, len(steps), args.schedule.chain):
            chain = totals if first == 0 and position == positions[0] else zero_registers(len(totals), totals.dtype)
            for unit, step in steps[first : first + args.schedule.chain]:
                x4 = packed_x(args["x8"], 0, (first_unit + unit) * layout.unit + 4 * step)
                for block in range(layout.blocks):
                    codes = field_codes(args["codes"], layout, tile, first_unit + unit, block, step, position)
                    chain[block] = dot.step(chain[block], prepared(codes), x4)
            if chain is not totals:
                for block in range(layout.blocks):
                    totals[block] = totals[block] + chain[block]
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
    layout, lanes = args.layout, args.layout.lanes
    totals = zero_registers(layout.blocks, vector("int32", lanes))

    def operand(block: int, step: int) -> Any:
        unit, inner = divmod(step, layout.unit // 4)
        return prepared(step_codes(args["codes"], layout, tile, first_unit + unit, block, inner))

    def activation(_row: int, step: int) -> Any:
        return packed_x(args["x8"], 0, first_unit * layout.unit + 4 * step)

    for chunk in range(units * layout.unit // INPUT_MULTIPLE):
        steps = chunk * (INPUT_MULTIPLE // 4)
        accumulate_chunk(
            dot,
            totals,
            1,
            layout.blocks,
            lambda block, step, steps=steps: operand(block, steps + step),  # type: ignore[misc]
            lambda row, step, steps=steps: activation(row, steps + step),  # type: ignore[misc]
            unroll=True,
        )
    if offsets is not None:
        for block, offset in enumerate(offsets):
            totals[block] = centred(dot, totals[block], offset, activation_sum)
    return totals


def prepare_float_activations(args: Arguments) -> tuple[Any, Any]:
    """Scratch for ``decode_packed_float``: x times ``byte_weight``, and the sum of x over each group."""
    layout = args.layout
    weighted = T.alloc_buffer((layout.inputs,), "float32")
    sums = T.alloc_buffer((layout.groups,), "float32")
    with loop(layout.groups) as group:
        total = zero_registers(4, "float32")
        with loop(layout.group // 4) as step:
            for byte in range(4):
                k = group * layout.group + step * 4 + byte
                value = args["x"][0, k]
                total[byte] = total[byte] + value
                store(weighted, value * T.float32(byte_weight(byte)), [k], 1)
        store(sums, (total[0] + total[1]) + (total[2] + total[3]), [group], 1)
    return weighted, sums


def decode_packed_float(args: Arguments, tile: Any, weighted: Any, sums: Any) -> None:
    """Packed weights and float activations: sum(code * x) - zero * sum(x) in each group, in single precision."""
    layout, lanes = args.layout, args.layout.lanes
    results = zero_registers(layout.blocks, vector("float32", lanes))
    operands = looked_up(args)
    units = layout.group // layout.unit
    with loop(layout.groups) as group:
        totals = zero_registers(layout.blocks, vector("float32", lanes))
        with loop(units) as inner:
            unit = group * units + inner
            for step in range(layout.unit // 4):
                for block in range(layout.blocks):
                    codes = operands(step_codes(args["codes"], layout, tile, unit, block, step))
                    for byte in range(4):
                        x = splat(weighted[unit * layout.unit + 4 * step + byte], lanes)
                        totals[block] = totals[block] + code_of_byte(codes, byte, lanes) * x
        for block in range(layout.blocks):
            offset = group_offset(args.zeros, layout, 0, tile, group, block)
            if isinstance(offset, int):
                centre = splat(sums[group] * T.float32(offset), lanes)
            else:
                centre = T.cast(offset, vector("float32", lanes)) * splat(sums[group], lanes)
            total = totals[block] + centre
            results[block] = results[block] + total * group_scale(args["scales"], args.isa, tile, group, block)
    for block in range(layout.blocks):
        args.write(0, tile, block, results[block])


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
