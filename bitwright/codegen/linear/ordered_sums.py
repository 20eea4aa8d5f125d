"""Integer sums of one token over a group of inputs, line by line in the order of memory.

Where unsigned operands may be as large as 255, codes are multiplied where they lie in their bytes, and those of each
bit position are summed apart until the group ends: a code at bit p counts 2**p times. Elsewhere every code is moved to
bit 0. All sums of a tile are held in registers meanwhile (``schedule.can_be_ordered``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, loop, prefetch, splat, zero_registers
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.dot import Dot
from bitwright.codegen.linear.int8_group import packed_x
from bitwright.codegen.linear.lookup import wraps
from bitwright.codegen.linear.span_sums import start_sums
from bitwright.codegen.linear.unpack import field_codes
from bitwright.codegen.ordered import load_in_order
from bitwright.codegen.vectormath import hold

Ahead = Callable[[Any, int], Sequence[Sequence[Any]]]
"""With each line of a span, elements of the cache lines that it asks for: (the span's first unit, its units)."""


class _Sums:
    """int32 sums, and the partial ones of a dot product whose chains are bounded, which are added to them in time."""

    def __init__(self, dot: Dot, totals: Registers) -> None:
        self.dot, self.totals = dot, totals
        self._direct = dot.partial == totals.dtype
        self._partials = totals if self._direct else zero_registers(len(totals), dot.partial)
        self._steps = [0] * len(totals)

    def add(self, index: int, operand: Any, x4: Any) -> None:
        """Emit a step."""
        self._partials[index] = self.dot.step(self._partials[index], operand, x4)
        self._steps[index] += 1
        if self._steps[index] == self.dot.steps:
            self._widen(index)

    def finish(self) -> None:
        """Emit what makes ``totals`` complete."""
        for index, steps in enumerate(self._steps):
            if steps and not self._direct:
                self._widen(index)

    def _widen(self, index: int) -> None:
        self.totals[index] = self.totals[index] + self.dot.widen(self._partials[index])
        self._partials[index] = splat(T.cast(0, self.dot.partial.partition("x")[0]), 2 * self.dot.lanes)
        self._steps[index] = 0


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
    place = layout.positions if dot.in_place else (0,) * len(layout.positions)
    positions = sorted(set(place))
    totals = start_sums(args, offsets, activation_sum)
    others = {position: zero_registers(len(totals), totals.dtype) for position in positions[1:]}
    registers = {0: totals, **others}
    span = args.schedule.fitting_span(layout.group)
    units, spans = span // layout.unit, layout.group // span

    def add_span(first_unit: Any) -> None:
        sums = {position: _Sums(dot, registers[position]) for position in positions}
        asked = iter(ahead(first_unit, units))
        for unit in range(units):
            for block in range(layout.blocks):
                at = [tile, first_unit + unit, block]
                lines = [hold(load_in_order(args["codes"], [*at, n, 0], 4 * layout.lanes)) for n in range(layout.lines)]
                for _ in lines:
                    for element in next(asked, ()):
                        prefetch(element, args.schedule.prefetch_level)
                for step, position in enumerate(place):
                    codes = field_codes(lines.__getitem__, layout, step, position, any_above=wraps(args))
                    operand = hold(prepared(codes))
                    k = (first_unit + unit) * layout.unit + 4 * step
                    for term in range(args.terms):
                        x4 = packed_x(args["x8"], 0, k + term * layout.inputs)
                        sums[position].add(term * layout.blocks + block, operand, x4)
        for part in sums.values():
            part.finish()

    if spans == 1:
        add_span(group * units)
    else:
        with loop(spans) as index:
            add_span((group * spans + index) * units)
    for above, position in zip(positions[:0:-1], positions[-2::-1], strict=True):
        for index in range(len(totals)):
            moved = registers[above][index] >> splat(T.int32(above - position), layout.lanes)
            registers[position][index] = registers[position][index] + moved
    return totals
