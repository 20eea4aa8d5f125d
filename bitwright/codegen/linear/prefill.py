"""Packed weights and any number of tokens: a tile is unpacked once, into scratch that stays in cache.

Where the inputs of a tile are too many for that, they are taken in slices, one after the other for up to ``MAX_TOKENS``
tokens, whose sums wait in scratch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, splat, store, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.dot import dot_of
from bitwright.codegen.linear.int8_group import accumulate_chunk, finish_group, packed_x, start_group
from bitwright.codegen.linear.lookup import looked_up
from bitwright.codegen.linear.row_blocks import for_row_blocks
from bitwright.codegen.linear.unpack import group_offset, group_scale, step_codes

MAX_TOKENS = 512
"""Tokens for which a slice is unpacked once."""


@dataclass(frozen=True)
class _Slice:
    """Unpacked inputs of a tile: buffers, the first group, the number of groups, and the number of the slice of all."""

    operands: Any
    scales: Any
    offsets: Any
    groups: int
    count: int
    sums: Any
    number: Any = 0
    first_token: Any = 0

    @property
    def first_group(self) -> Any:
        return self.number * self.groups


def prefill_packed(args: Arguments, tile: Any) -> None:
    """All rows of one tile of results."""
    layout, lanes = args.layout, args.layout.lanes
    groups = args.schedule.fitting_groups(layout)
    count = layout.groups // groups
    grouped = (groups, layout.blocks, lanes)
    part = _Slice(
        T.alloc_buffer((groups * layout.group // 4, layout.blocks, 4 * lanes), "uint8"),
        T.alloc_buffer(grouped, "float32"),
        None if args.zeros is None else T.alloc_buffer(grouped, "int32"),
        groups,
        count,
        T.alloc_buffer((MAX_TOKENS, layout.blocks, lanes), "float32") if count > 1 else None,
    )
    if count == 1:
        _unpack(args, tile, part)
        _multiply(args, tile, part, T.int64(0), args.tokens)
        return
    with loop((args.tokens + (MAX_TOKENS - 1)) // T.int64(MAX_TOKENS)) as turn, loop(count) as number:
        now = replace(part, number=number, first_token=turn * MAX_TOKENS)
        _unpack(args, tile, now)
        _multiply(args, tile, now, turn * MAX_TOKENS, T.min(turn * MAX_TOKENS + MAX_TOKENS, args.tokens))


def _unpack(args: Arguments, tile: Any, part: _Slice) -> None:
    layout, lanes = args.layout, args.layout.lanes
    dot = dot_of(args.isa, layout.weight.operand_bits)
    prepared = looked_up(args, dot.prepare)
    units, steps = part.groups * layout.group // layout.unit, layout.unit // 4
    with loop(units) as unit:
        for block in range(layout.blocks):
            for step in range(steps):
                codes = step_codes(args["codes"], layout, tile, part.number * units + unit, block, step)
                store(part.operands, prepared(codes), [unit * steps + step, block, 0], 4 * lanes)
    with loop(part.groups) as index:
        group = part.first_group + index
        for block in range(layout.blocks):
            store(part.scales, group_scale(args["scales"], args.isa, tile, group, block), [index, block, 0], lanes)
            if part.offsets is not None:
                offset = group_offset(args.zeros, layout, dot.bias, tile, group, block)
                store(part.offsets, offset, [index, block, 0], lanes)


def _multiply(args: Arguments, tile: Any, part: _Slice, first: Any, end: Any) -> None:
    """The slice's share of the results of tokens ``first`` to before ``end``."""
    columns = args.schedule.columns

    def micro(first_row: Any, rows: int) -> None:
        for first_block in range(0, args.layout.blocks, columns):
            blocks = range(first_block, min(first_block + columns, args.layout.blocks))
            _results(args, tile, first_row, rows, blocks, part)

    for_row_blocks(first, end, args.schedule.rows, micro)


def _results(args: Arguments, tile: Any, first_row: Any, rows: int, blocks: range, part: _Slice) -> None:
    layout, lanes, terms, columns = args.layout, args.layout.lanes, args.terms, len(blocks)
    dot = dot_of(args.isa, layout.weight.operand_bits)
    chunk_steps = INPUT_MULTIPLE // 4
    chunks = layout.group // INPUT_MULTIPLE
    results = zero_registers(rows * columns, vector("float32", lanes))
    if part.sums is not None:
        with T.If(part.number > T.int64(0)), T.Then():
            for row in range(rows):
                for column, block in enumerate(blocks):
                    waiting = load(part.sums, [first_row + row - part.first_token, block, 0], lanes)
                    results[row * columns + column] = waiting

    def chunk_sums(totals: Registers, chunk: Any) -> None:
        first_input = (part.first_group * chunks + chunk) * INPUT_MULTIPLE

        def operand(column: int, step: Any) -> Any:
            return load(part.operands, [chunk * chunk_steps + step, blocks[column], 0], 4 * lanes)

        def activation(index: int, step: Any) -> Any:
            row, term = divmod(index, terms)
            return packed_x(args["x8"], first_row + row, term * layout.inputs + first_input + 4 * step)

        accumulate_chunk(dot, totals, rows * terms, columns, operand, activation, unroll=False)

    def offset_of(index: Any, block: int) -> Any:
        if part.offsets is None:
            return group_offset(None, layout, dot.bias, tile, index, block)
        return load(part.offsets, [index, block, 0], lanes)

    with loop(part.groups) as index:
        group = part.first_group + index
        totals = Registers(rows * terms * columns, vector("int32", lanes))
        for row in range(rows):
            activation_sum = args["sum"][first_row + row, group]
            for column, block in enumerate(blocks):
                starts = start_group(dot, terms, layout.group, offset_of(index, block), activation_sum)
                for term, start in enumerate(starts):
                    totals[(row * terms + term) * columns + column] = start
        if chunks == 1:
            chunk_sums(totals, index)
        else:
            with loop(chunks) as chunk:
                chunk_sums(totals, index * chunks + chunk)
        for row in range(rows):
            activation_sum = args["sum"][first_row + row, group]
            x_scale = splat(args["scale"][first_row + row, group], lanes)
            for column, block in enumerate(blocks):
                sums = [totals[(row * terms + term) * columns + column] for term in range(terms)]
                total = finish_group(dot, sums, layout.group, offset_of(index, block), activation_sum)
                scale = load(part.scales, [index, block, 0], lanes) * x_scale
                results[row * columns + column] = results[row * columns + column] + total * scale

    def leave(write: bool) -> None:
        for row in range(rows):
            for column, block in enumerate(blocks):
                value = results[row * columns + column]
                if write:
                    args.write(first_row + row, tile, block, value)
                else:
                    store(part.sums, value, [first_row + row - part.first_token, block, 0], lanes)

    if part.sums is None:
        leave(write=True)
        return
    with T.If(part.number < T.int64(part.count - 1)):
        with T.Then():
            leave(write=False)
        with T.Else():
            leave(write=True)
