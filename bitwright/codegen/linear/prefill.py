"""Packed weights and any number of tokens: a tile is unpacked once, into scratch that stays in cache."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, splat, store, vector, zero_registers
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import INPUT_MULTIPLE, PackedLayout
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.dot import dot_of
from bitwright.codegen.linear.int8_group import accumulate_chunk, group_total, packed_x
from bitwright.codegen.linear.lookup import looked_up
from bitwright.codegen.linear.row_blocks import for_row_blocks
from bitwright.codegen.linear.unpack import group_offset, group_scale, step_codes


def _block(isa: Isa, layout: PackedLayout, terms: int) -> tuple[int, int]:
    """Rows and vectors of outputs of a register block; measured on Zen 4 for the AVX2 path."""
    if isa.dot == "maddubs":
        # Each activation is a broadcast load, which costs no arithmetic; wider codes need registers for shorter chains.
        return (10 if layout.weight.operand_bits <= 4 else 8) // terms, 1
    if isa.registers > 16:
        columns = min(layout.blocks, 4)
        return (12 if terms == 1 else 8) // columns, columns
    if terms == 2:
        return 4, 1
    return (2, 3) if layout.blocks == 3 else (4, 2)


def prefill_packed(args: Arguments, tile: Any) -> None:
    """All rows of one tile of results."""
    layout, lanes, isa = args.layout, args.layout.lanes, args.isa
    dot = dot_of(isa, layout.weight.operand_bits)
    prepared = looked_up(args, dot.prepare)
    steps = layout.inputs // 4
    operands = T.alloc_buffer((steps, layout.blocks, 4 * lanes), "uint8")
    scales = T.alloc_buffer((layout.groups, layout.blocks, lanes), "float32")
    offsets = None if args.zeros is None else T.alloc_buffer((layout.groups, layout.blocks, lanes), "int32")

    with loop(layout.inputs // layout.unit) as unit:
        for block in range(layout.blocks):
            for step in range(layout.unit // 4):
                codes = step_codes(args["codes"], layout, tile, unit, block, step)
                store(operands, prepared(codes), [unit * (layout.unit // 4) + step, block, 0], 4 * lanes)
    with loop(layout.groups) as group:
        for block in range(layout.blocks):
            store(scales, group_scale(args["scales"], isa, tile, group, block), [group, block, 0], lanes)
            if offsets is not None:
                offset = group_offset(args.zeros, layout, dot.bias, tile, group, block)
                store(offsets, offset, [group, block, 0], lanes)

    block_rows, columns = _block(isa, layout, args.terms)

    def micro(first_row: Any, rows: int) -> None:
        for first_block in range(0, layout.blocks, columns):
            width = min(columns, layout.blocks - first_block)
            _results(args, tile, first_row, rows, first_block, width, operands, scales, offsets)

    for_row_blocks(T.int64(0), args.tokens, block_rows, micro)


def _results(
    args: Arguments,
    tile: Any,
    first_row: Any,
    rows: int,
    first_block: int,
    columns: int,
    operands: Any,
    scales: Any,
    offsets: Any,
) -> None:
    layout, lanes, terms = args.layout, args.layout.lanes, args.terms
    dot = dot_of(args.isa, layout.weight.operand_bits)
    chunk_steps = INPUT_MULTIPLE // 4
    chunks = layout.group // INPUT_MULTIPLE
    results = zero_registers(rows * columns, vector("float32", lanes))

    def chunk_sums(totals: Registers, chunk: Any) -> None:
        def operand(block: int, step: Any) -> Any:
            return load(operands, [chunk * chunk_steps + step, first_block + block, 0], 4 * lanes)

        def activation(index: int, step: Any) -> Any:
            row, term = divmod(index, terms)
            return packed_x(args["x8"], first_row + row, term * layout.inputs + chunk * INPUT_MULTIPLE + 4 * step)

        accumulate_chunk(dot, totals, rows * terms, columns, operand, activation, unroll=False)

    with loop(layout.groups) as group:
        totals = zero_registers(rows * terms * columns, vector("int32", lanes))
        if chunks == 1:
            chunk_sums(totals, group)
        else:
            with loop(chunks) as chunk:
                chunk_sums(totals, group * chunks + chunk)
        for row in range(rows):
            for block in range(columns):
                index = row * columns + block
                if offsets is None:
                    offset = group_offset(None, layout, dot.bias, tile, group, block)
                else:
                    offset = load(offsets, [group, first_block + block, 0], lanes)
                sums = [totals[(row * terms + term) * columns + block] for term in range(terms)]
                total = group_total(dot, sums, offset, args["sum"][first_row + row, group], layout.group)
                x_scale = splat(args["scale"][first_row + row, group], lanes)
                scale = load(scales, [group, first_block + block, 0], lanes) * x_scale
                results[index] = results[index] + total * scale
    for row in range(rows):
        for block in range(columns):
            args.write(first_row + row, tile, first_block + block, results[row * columns + block])
