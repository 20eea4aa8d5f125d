"""A gated activation in the product that it reads: the rows of gate and up never leave the cache as floats.

``glu_linear`` computes y = quantize(f(W_gate x) * (W_up x)) for any number of tokens, W being gate's rows over up's. It
takes vectors of outputs of both halves together, so many that the results are one group of the quantized row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen import vectormath
from bitwright.codegen.activation import quantize_group
from bitwright.codegen.builder import kernel, load, loop, prefetch, store, symbol
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.arguments import Arguments, of_parts
from bitwright.codegen.linear.glu_spec import GluLinearSpec
from bitwright.codegen.linear.prefill import Ahead, prefill_columns, units_of
from bitwright.codegen.linear.register_block import Column, Slice
from bitwright.codegen.linear.results import batches
from bitwright.codegen.linear.schedule import Schedules
from bitwright.codegen.linear.spec import TOKENS, linear_arguments

BATCH = 48
"""Tokens whose results are computed side by side; divides ``prefill.MAX_TOKENS``."""


def glu_kernel(spec: GluLinearSpec, isa: Isa, name: str, schedules: Schedules) -> Any:
    """The PrimFunc: one parallel loop over the groups of the result."""
    with kernel(name) as function:
        tokens = symbol("n")
        buffers = {
            tensor.name: function.tensor(
                tensor.name, [tokens if extent == TOKENS else extent for extent in tensor.shape], tensor.dtype
            )
            for tensor in linear_arguments(spec.linear, isa)
            if tensor.name != "y"
        }
        x8, scale, total = (
            function.tensor(f"y_{tensor.name}", (tokens, tensor.shape[1]), tensor.dtype)
            for tensor in spec.quantize.tensors(1, spec.width)
        )
        (args,) = of_parts(spec.linear, isa, tokens, buffers, schedules)
        vectors = spec.quantize.group // isa.lanes
        units = args.layout.blocks // vectors
        with loop(spec.width // spec.quantize.group, "parallel") as group:
            tile, block = T.floordiv(group, T.int64(units)), T.floormod(group, T.int64(units)) * vectors
            columns = [
                Column(tile + half * (args.layout.tiles // 2), block + vector)
                for half in range(2)
                for vector in range(vectors)
            ]
            results = _GluResults(spec, args, (x8, scale, total), group)
            prefill_columns(args, columns, results, _next_tiles(args, tile, block + vectors))
    return function.func


def _next_tiles(args: Arguments, tile: Any, next_block: Any) -> Ahead:
    """Asks for the next tiles of gate and up, line by line, while the last group of these is computed."""

    def ahead(part: Slice, line: Any) -> None:
        with T.If(next_block == T.int64(args.layout.blocks)), T.Then():
            for half in range(2):
                next_tile = tile + (half * (args.layout.tiles // 2) + 1)
                unit = part.number * units_of(args, part)
                prefetch(args["codes"][next_tile, unit, T.int64(0), line, T.int64(0)])

    return ahead


class _GluResults:
    """Sums of gate and up wait in scratch until there are enough tokens that their rows are computed side by side.

    A row is a chain of steps that wait for each other: one at a time would leave the machine idle.
    """

    tokens: int | None = BATCH

    def __init__(self, spec: GluLinearSpec, args: Arguments, results: tuple[Any, Any, Any], group: Any) -> None:
        self._spec, self._lanes, self._results, self._group = spec, args.isa.lanes, results, group
        self._first_row: Any = None
        self._sums = T.alloc_buffer((BATCH, 2 * spec.quantize.group), "float32")

    def batches(self, columns: int) -> Iterator[range]:
        return batches(2 * self._spec.quantize.group // self._lanes, columns)

    def expect(self, first_row: Any, rows: int) -> None:
        pass

    def put(self, first_row: Any, row: int, number: int, value: Any) -> None:
        place = T.floormod(first_row + row, T.int64(BATCH))  # batches begin at its multiples
        store(self._sums, value, [place, number * self._lanes], self._lanes)

    def finish(self, first_row: Any, end: Any) -> None:
        spec, lanes, group = self._spec, self._lanes, self._spec.quantize.group
        function = getattr(vectormath, spec.function)
        rows = T.Bind(end - first_row)
        with loop(rows) as row:
            for offset in range(0, group, lanes):
                gate, up = (load(self._sums, [row, half * group + offset], lanes) for half in range(2))
                store(self._sums, function(gate, lanes) * up, [row, offset], lanes)
        quantize_group(lanes, spec.quantize, spec.width, self._sums, self._results, (first_row, rows, self._group))
