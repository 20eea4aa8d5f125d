"""A few tokens times a few vectors of outputs, whose sums stay in registers: where prefill spends its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, store, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.int8_group import accumulate_chunk, finish_group, packed_x, start_group
from bitwright.codegen.linear.results import Results
from bitwright.codegen.linear.scale_table import ScaleTable
from bitwright.codegen.linear.unpack import group_offset


class Column(NamedTuple):
    """A vector of outputs: block ``block`` of tile ``tile`` of the packed matrix."""

    tile: Any
    block: Any


@dataclass(frozen=True)
class Slice:
    """Unpacked inputs of some columns.

    Attributes:
        operands: u8 [steps, columns, 4 * lanes], what dot products take.
        scales: of weights.
        offsets: i32 [groups, columns, lanes], None for symmetric schemes.
        groups: of the slice.
        count: slices of a row.
        sums: f32 [tokens, columns, lanes] of the slices before it; None if there is one only.
        number: of the slice.
        first_token: that ``sums`` begins with.
    """

    columns: Sequence[Column]
    operands: Any
    scales: ScaleTable
    offsets: Any
    groups: int
    count: int
    sums: Any
    number: Any = 0
    first_token: Any = 0

    def at(self, number: Any, first_token: Any) -> Slice:
        return replace(self, number=number, first_token=first_token)

    @property
    def first_group(self) -> Any:
        return self.number * self.groups

    def if_last(self, emit: Callable[[], None], otherwise: Callable[[], None] | None = None) -> None:
        """Emit code that runs for the last slice of a row only, and what runs for the others."""
        if self.count == 1:
            emit()
            return
        with T.If(self.number == T.int64(self.count - 1)):
            with T.Then():
                emit()
            if otherwise is not None:
                with T.Else():
                    otherwise()


@dataclass(frozen=True)
class RegisterBlock:
    """``rows`` tokens times the columns ``chosen`` of a slice.

    Attributes:
        looks_up: products of scales come from the slice's table, else from multiplications.
    """

    args: Arguments
    part: Slice
    chosen: range
    rows: int
    looks_up: bool

    def compute(self, first_row: Any, target: Results) -> None:
        """Add the slice's products, and pass the results on if it is the last of a row."""
        results = self._begin(first_row)
        with loop(self.part.groups) as index:
            self._add_group(results, first_row, index)
        columns = len(self.chosen)

        def put() -> None:
            for row in range(self.rows):
                for column, number in enumerate(self.chosen):
                    target.put(first_row, row, number, results[row * columns + column])

        def wait() -> None:
            for row in range(self.rows):
                for column, number in enumerate(self.chosen):
                    store(self.part.sums, results[row * columns + column], self._waiting(first_row, row, number), lanes)

        lanes = self.args.layout.lanes
        self.part.if_last(put, wait)

    def _waiting(self, first_row: Any, row: int, number: int) -> list[Any]:
        return [first_row + row - self.part.first_token, number, 0]

    def _begin(self, first_row: Any) -> Registers:
        lanes, columns = self.args.layout.lanes, len(self.chosen)
        results = zero_registers(self.rows * columns, vector("float32", lanes))
        if self.part.sums is not None:
            with T.If(self.part.number > T.int64(0)), T.Then():
                for row in range(self.rows):
                    for column, number in enumerate(self.chosen):
                        waiting = load(self.part.sums, self._waiting(first_row, row, number), lanes)
                        results[row * columns + column] = waiting
        return results

    def _add_group(self, results: Registers, first_row: Any, index: Any) -> None:
        args, part, columns = self.args, self.part, len(self.chosen)
        layout, terms, group = args.layout, args.terms, part.first_group + index
        dot = args.dot
        totals = Registers(self.rows * terms * columns, vector("int32", layout.lanes))
        for row in range(self.rows):
            activation_sum = args["sum"][first_row + row, group]
            for column in range(columns):
                starts = start_group(dot, terms, layout.group, self._offset(index, column), activation_sum)
                for term, start in enumerate(starts):
                    totals[(row * terms + term) * columns + column] = start
        chunks = layout.group // INPUT_MULTIPLE
        self._add_chunks(totals, first_row, index * chunks, chunks)
        for row in range(self.rows):
            activation_sum = args["sum"][first_row + row, group]
            multiplied = part.scales.looked_up if self.looks_up else part.scales.multiplied
            scale = multiplied(index, args["scale"], (first_row + row, group))
            for column, number in enumerate(self.chosen):
                sums = [totals[(row * terms + term) * columns + column] for term in range(terms)]
                total = finish_group(dot, sums, layout.group, self._offset(index, column), activation_sum)
                results[row * columns + column] = results[row * columns + column] + total * scale(number)

    def _add_chunks(self, totals: Registers, first_row: Any, chunk: Any, chunks: int) -> None:
        """Products of 32 inputs times ``chunks``, from chunk ``chunk`` of the slice on."""
        args, part, steps = self.args, self.part, INPUT_MULTIPLE // 4
        layout, terms = args.layout, args.terms
        first_input = part.first_group * layout.group + chunk * INPUT_MULTIPLE

        def operand(column: int, step: Any) -> Any:
            return load(part.operands, [chunk * steps + step, self.chosen[column], 0], 4 * layout.lanes)

        def activation(index: int, step: Any) -> Any:
            row, term = divmod(index, terms)
            return packed_x(args["x8"], first_row + row, term * layout.inputs + first_input + 4 * step)

        dot = args.dot
        rows, columns = self.rows * terms, len(self.chosen)
        accumulate_chunk(dot, totals, rows, columns, operand, activation, unroll=False, chunks=chunks)

    def _offset(self, index: Any, column: int) -> Any:
        layout = self.args.layout
        if self.part.offsets is None:
            bias = self.args.dot.bias
            return group_offset(None, layout, bias, None, None, None)
        return load(self.part.offsets, [index, self.chosen[column], 0], layout.lanes)
