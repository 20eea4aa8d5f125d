"""Integer sums of one token over a group of inputs, line by line in the order of memory.

Codes are multiplied where they lie in their bytes, and those of each bit position are summed apart until the group
ends: a code at bit p counts 2**p times. All sums of a tile are held in registers meanwhile (``ordered_sums`` of them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, loop, prefetch, splat, zero_registers
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.int8_group import packed_x
from bitwright.codegen.linear.lookup import wraps
from bitwright.codegen.linear.span_sums import start_sums
from bitwright.codegen.linear.unpack import field_codes
from bitwright.codegen.ordered import load_in_order
from bitwright.codegen.vectormath import hold

Ahead = Callable[[Any, int], Sequence[Any]]
"""Elements of the lines that a span asks for, in order: (its first unit, its units)."""


def sums_in_order(
    args: Arguments,
    prepared: Callable[[Any], Any],
    tile: Any,
    group: Any,
    ahead: Ahead,
    offsets: list[Any] | None,
    activation_sum: Any,
) -> Registers:
    """Sums of code * activation (plus offset * sum of activations) over group ``group``, term by term and block."""
    layout, dot = args.layout, args.dot
    positions = sorted(set(layout.positions))
    totals = start_sums(args, dot, offsets, activation_sum)
    sums = {0: totals, **{position: zero_registers(len(totals), totals.dtype) for position in positions[1:]}}
    span = args.schedule.fitting_span(layout.group)
    units, spans = span // layout.unit, layout.group // span

    def add_span(first_unit: Any) -> None:
        asked = iter(ahead(first_unit, units))
        for unit in range(units):
            for block in range(layout.blocks):
                at = [tile, first_unit + unit, block]
                lines = [hold(load_in_order(args["codes"], [*at, n, 0], 4 * layout.lanes)) for n in range(layout.lines)]
                for _ in lines:
                    for element in next(asked, ()):
                        prefetch(element, args.schedule.prefetch_level)
                for step, position in enumerate(layout.positions):
                    codes = field_codes(lines.__getitem__, layout, step, position, any_above=wraps(args))
                    operand = prepared(codes)
                    k = (first_unit + unit) * layout.unit + 4 * step
                    for term in range(args.terms):
                        x4, index = packed_x(args["x8"], 0, k + term * layout.inputs), term * layout.blocks + block
                        sums[position][index] = dot.step(sums[position][index], operand, x4)

    if spans == 1:
        add_span(group * units)
    else:
        with loop(spans) as index:
            add_span((group * spans + index) * units)
    for above, position in zip(positions[:0:-1], positions[-2::-1], strict=True):
        for index in range(len(totals)):
            moved = sums[above][index] >> splat(T.int32(above - position), layout.lanes)
            sums[position][index] = sums[position][index] + moved
    return totals
