"""One token: y = W x. Weights stream through once and are unpacked in registers; the time is that of reading them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, prefetch, splat, vector, zero_registers
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.int8_group import finish_group, fits_int32
from bitwright.codegen.linear.lookup import looked_up
from bitwright.codegen.linear.ordered_sums import sums_in_order
from bitwright.codegen.linear.span_sums import start_sums, sums_in_place, sums_moved
from bitwright.codegen.linear.unpack import group_offset, group_scale, widen_half

LINE_BYTES = 64
"""Of a cache line, which one prefetch asks for."""

Prepared = Callable[[Any], Any]
Starts = list[Any] | None


def decode_packed(args: Arguments, tile: Any) -> None:
    """Packed weights and quantized activations: one tile of results."""
    layout, lanes, terms = args.layout, args.layout.lanes, args.terms
    dot = args.dot
    prepared = looked_up(args, dot.prepare)
    results = zero_registers(layout.blocks, vector("float32", lanes))
    sums = _sums_in_order if args.schedule.ordered else _sums_of_spans

    with loop(layout.groups) as group:
        offsets = [group_offset(args.zeros, layout, dot.bias, tile, group, block) for block in range(layout.blocks)]
        starts = offsets if fits_int32(dot, terms, layout.group) else None
        activation_sum = args["sum"][0, group]
        prefetch_scales(args, tile, group)
        totals = sums(args, prepared, tile, group, starts, activation_sum)
        for block in range(layout.blocks):
            sums_of_terms = [totals[term * layout.blocks + block] for term in range(terms)]
            total = finish_group(dot, sums_of_terms, layout.group, offsets[block], activation_sum)
            scale = group_scale(args["scales"], args.isa, tile, group, block) * splat(args["scale"][0, group], lanes)
            results[block] = results[block] + total * scale
    for block in range(layout.blocks):
        args.write(0, tile, block, results[block])


def _sums_in_order(args: Arguments, prepared: Prepared, tile: Any, group: Any, starts: Starts, x_sum: Any) -> Registers:
    return sums_in_order(args, prepared, tile, group, lambda *span: _codes_ahead(args, tile, *span), starts, x_sum)


def _sums_of_spans(args: Arguments, prepared: Prepared, tile: Any, group: Any, starts: Starts, x_sum: Any) -> Registers:
    layout = args.layout
    span = args.schedule.fitting_span(layout.group)
    spans, units = layout.group // span, span // layout.unit
    sums = sums_in_place if args.dot.in_place else sums_moved

    def ask(first_unit: Any) -> None:
        for elements in _codes_ahead(args, tile, first_unit, units):
            for element in elements:
                prefetch(element, args.schedule.prefetch_level)

    if spans == 1:
        ask(group * units)
        return sums(args, prepared, tile, group * units, units, starts, x_sum)
    totals = start_sums(args, starts, x_sum)
    with loop(spans) as index:
        first_unit = (group * spans + index) * units
        ask(first_unit)
        part = sums(args, prepared, tile, first_unit, units, None, None)
        for sum_index in range(len(totals)):
            totals[sum_index] = totals[sum_index] + part[sum_index]
    return totals


def _codes_ahead(args: Arguments, tile: Any, first_unit: Any, units: int) -> list[list[Any]]:
    """What to ask for with each line of codes of a span: the cache line at the schedule's distance ahead, if any."""
    layout, distance = args.layout, args.schedule.prefetch
    if not distance:
        return []
    line_bytes, per_unit = 4 * layout.lanes, layout.blocks * layout.lines
    asked = []
    for line in range(units * per_unit):
        unit, rest = divmod(line + distance // line_bytes, per_unit)
        block, inner = divmod(rest, layout.lines)
        begins = line * line_bytes % LINE_BYTES == 0
        element = args["codes"][tile, first_unit + unit, T.int64(block), T.int64(inner), T.int64(0)]
        asked.append([element] if begins else [])
    return asked


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
