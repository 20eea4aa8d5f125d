"""Packed weights and any number of tokens: rows are unpacked once, into scratch that stays in cache.

Where the inputs of a row are too many for that, they are taken in slices, one after the other for up to ``MAX_TOKENS``
tokens, whose sums wait in scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import loop, prefetch, store
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.lookup import looked_up
from bitwright.codegen.linear.register_block import Column, RegisterBlock, Slice
from bitwright.codegen.linear.results import Results, TileResults
from bitwright.codegen.linear.row_blocks import for_row_blocks
from bitwright.codegen.linear.scale_table import MIN_TOKENS, ScaleTable
from bitwright.codegen.linear.unpack import group_offset, group_scale, lines_of, step_codes

MAX_TOKENS = 528
"""Tokens for which a slice is unpacked once: a chunk, rounded up to what results wait for (``Results.tokens``)."""


def prefill_packed(args: Arguments, tile: Any) -> None:
    """All rows of one tile of results."""
    columns = [Column(tile, block) for block in range(args.layout.blocks)]

    def ahead(part: Slice, line: Any) -> None:
        """The next slice of the tile, or the first of the next tile, follows this one in memory."""
        prefetch(args["codes"][tile, (part.number + 1) * units_of(args, part), T.int64(0), line, T.int64(0)])

    prefill_columns(args, columns, TileResults(args, columns), ahead)


Ahead = Callable[[Slice, Any], None]
"""Asks for one line of the codes that are unpacked next: (slice, number of the line)."""


def units_of(args: Arguments, part: Slice) -> int:
    """Units of codes that a slice has."""
    return part.groups * args.layout.group // args.layout.unit


def prefill_columns(args: Arguments, columns: Sequence[Column], results: Results, ahead: Ahead) -> None:
    """Sums of any vectors of outputs, for every token. ``ahead`` is called once per block of tokens."""
    layout, lanes = args.layout, args.layout.lanes
    width = len(columns)
    groups = args.schedule.fitting_groups(layout, width)
    count = layout.groups // groups
    part = Slice(
        columns,
        T.alloc_buffer((groups * layout.group // 4, width, 4 * lanes), "uint8"),
        ScaleTable(groups, width, args.isa, leveled=args.looks_scales_up),
        None if args.zeros is None else T.alloc_buffer((groups, width, lanes), "int32"),
        groups,
        count,
        T.alloc_buffer((MAX_TOKENS, width, lanes), "float32") if count > 1 else None,
    )
    if count == 1:
        _unpack(args, part)
        _multiply(args, part, results, ahead, T.int64(0), args.tokens)
        return
    with loop((args.tokens + (MAX_TOKENS - 1)) // T.int64(MAX_TOKENS)) as turn, loop(count) as number:
        now = part.at(number, turn * MAX_TOKENS)
        _unpack(args, now)
        end = T.min(turn * MAX_TOKENS + MAX_TOKENS, args.tokens)
        _multiply(args, now, results, ahead, turn * MAX_TOKENS, end)


def _unpack(args: Arguments, part: Slice) -> None:
    layout, lanes = args.layout, args.layout.lanes
    dot = args.dot
    prepared = looked_up(args, dot.prepare)
    units, steps = units_of(args, part), layout.unit // 4
    with loop(units) as unit:
        for number, (tile, block) in enumerate(part.columns):
            for step in range(steps):
                codes = step_codes(
                    lines_of(args["codes"], layout, tile, part.number * units + unit, block), layout, step
                )
                store(part.operands, prepared(codes), [unit * steps + step, number, 0], 4 * lanes)
    with loop(part.groups) as index:
        group = part.first_group + index
        for number, (tile, block) in enumerate(part.columns):
            scale = group_scale(args["scales"], args.isa, tile, group, block)
            part.scales.fill(index, number, scale, args.tokens >= T.int64(MIN_TOKENS))
            if part.offsets is not None:
                offset = group_offset(args.zeros, layout, dot.bias, tile, group, block)
                store(part.offsets, offset, [index, number, 0], lanes)


def _multiply(args: Arguments, part: Slice, results: Results, ahead: Ahead, first: Any, end: Any) -> None:
    """The slice's share of the results of tokens ``first`` to before ``end``."""

    def compute(first_row: Any, rows: int, *, looks_up: bool = False) -> None:
        if rows == args.schedule.rows:
            ahead(part, (first_row - first) // T.int64(rows))
            part.if_last(lambda: results.expect(first_row + rows, rows))
        for chosen in results.batches(args.schedule.columns):
            RegisterBlock(args, part, chosen, rows, looks_up=looks_up).compute(first_row, results)

    def micro(first_row: Any, rows: int) -> None:
        if not part.scales.leveled or rows < args.schedule.rows:
            compute(first_row, rows)
            return
        with T.If(args.tokens >= T.int64(MIN_TOKENS)):
            with T.Then():
                compute(first_row, rows, looks_up=True)
            with T.Else():
                compute(first_row, rows)

    if results.tokens is None:
        for_row_blocks(first, end, args.schedule.rows, micro)
        return
    size = T.int64(results.tokens)
    with loop((end - first + (size - 1)) // size) as batch:
        begin = T.Bind(first + batch * size)
        until = T.Bind(T.min(begin + size, end))
        for_row_blocks(begin, until, args.schedule.rows, micro)
        part.if_last(lambda: results.finish(begin, until))
