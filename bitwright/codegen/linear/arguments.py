"""The arguments of a linear kernel under construction, and how its results are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Kernel, load, loop, prefetch, stack, store, symbol
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout
from bitwright.codegen.linear.dot import Dot, dot_of
from bitwright.codegen.linear.schedule import LinearSchedule, Schedules, default_schedule
from bitwright.codegen.linear.spec import TOKENS, AnyLinear, LinearSpec, MixedSpec, linear_arguments, part_arguments


@dataclass(frozen=True)
class Arguments:
    """Buffers of one part by name, with what the generators derive from its spec.

    Attributes:
        first: column of y, and element of the bias, that the part's first output belongs to.
        schedule: the part's knobs.
        tiles: of the part, where its code serves parts of any number of tiles; ``layout`` then has the last one alone.
    """

    spec: LinearSpec
    isa: Isa
    layout: PackedLayout
    tokens: Any
    buffers: Mapping[str, Any]
    first: Any = 0
    schedule: LinearSchedule = LinearSchedule()  # noqa: RUF009 - a frozen value
    tiles: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.buffers[name]

    @property
    def terms(self) -> int:
        """Int8 terms of an activation; 0: it is a float."""
        return self.spec.scheme.terms

    @property
    def dot(self) -> Dot:
        """The dot product of operands and int8 activations."""
        weight = self.layout.weight
        return dot_of(self.isa, weight.operand_bits, even=weight.value_step == 2)

    @property
    def looks_scales_up(self) -> bool:
        """Prefill may look products of scales up (``scale_table``): the schedule wants it and activations allow it."""
        return self.schedule.lookup and self.terms == 1 and self.isa.scale_exponent

    @property
    def zeros(self) -> Any:
        return self.buffers.get("zeros")

    def write(self, row: Any, tile: Any, block: int, value: Any) -> None:
        """y[row, block ``block`` of ``tile``] = value + bias + residual, without touching columns beyond the outputs.

        Only the last tile can be partial, and how many of its rows exist is known while building, if not which it is.
        """
        partial = self.layout.outputs % self.layout.rows
        if not partial:
            self._write_whole(row, tile, block, value)
            return
        last = T.int64(self.layout.tiles - 1) if self.tiles is None else self.tiles - T.int64(1)
        valid = min(max(partial - block * self.layout.lanes, 0), self.layout.lanes)
        if valid == self.layout.lanes:
            self._write_whole(row, tile, block, value)
            return
        if self.tiles is not None or self.layout.tiles > 1:
            with T.If(tile < last), T.Then():
                self._write_whole(row, tile, block, value)
        if valid:
            with T.If(tile == last), T.Then():
                self._write_part(row, tile, block, value, valid)

    def expect(self, row: Any, tile: Any, block: int) -> None:
        """Ask for the cache line that ``write`` will read; the row may lie behind the last."""
        if self.spec.residual:
            prefetch(self["residual"][row, self._column(tile, block)])

    def _column(self, tile: Any, block: int) -> Any:
        return tile * self.layout.rows + (self.first + block * self.layout.lanes)

    def _write_whole(self, row: Any, tile: Any, block: int, value: Any) -> None:
        column = self._column(tile, block)
        if self.spec.bias:
            value = value + load(self["bias"], [column], self.layout.lanes)
        if self.spec.residual:
            value = value + load(self["residual"], [row, column], self.layout.lanes)
        store(self["y"], value, [row, column], self.layout.lanes)

    def _write_part(self, row: Any, tile: Any, block: int, value: Any, valid: int) -> None:
        lanes = self.layout.lanes
        staged = stack((lanes,), "float32")
        store(staged, value, [0], lanes)
        with loop(valid) as lane:
            column = self._column(tile, block) + lane
            result = staged[lane] + self["bias"][column] if self.spec.bias else staged[lane]
            if self.spec.residual:
                result = result + self["residual"][row, column]
            T.buffer_store(self["y"], result, [row, column])


def declare(
    kernel: Kernel, spec: AnyLinear, isa: Isa, schedules: Schedules = default_schedule
) -> tuple[Arguments, ...]:
    """Declare the kernel's arguments; returns those of each part."""
    tokens = symbol("n") if spec.rows is None else spec.rows
    buffers = {
        tensor.name: kernel.tensor(
            tensor.name, [tokens if extent == TOKENS else extent for extent in tensor.shape], tensor.dtype
        )
        for tensor in linear_arguments(spec, isa)
    }
    return of_parts(spec, isa, tokens, buffers, schedules)


def of_parts(
    spec: AnyLinear, isa: Isa, tokens: Any, buffers: Mapping[str, Any], schedules: Schedules = default_schedule
) -> tuple[Arguments, ...]:
    """The arguments of each part among the kernel's buffers; ``schedules`` chooses the knobs of each."""
    columns = spec.columns if isinstance(spec, MixedSpec) else (0,)
    shared = {name: buffers[name] for name in ("bias", "residual", "y") if name in buffers}
    return tuple(
        Arguments(
            part,
            isa,
            part.layout(isa),
            tokens,
            {n: buffers[t.name] for n, t in (tensors.activations | tensors.weights).items() if t.name in buffers}
            | shared,
            first,
            schedules(part, isa),
        )
        for part, tensors, first in zip(spec.parts, part_arguments(spec, isa), columns, strict=True)
    )
