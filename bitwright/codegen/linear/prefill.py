"""Any number of tokens: a tile of weights is unpacked once into scratch that stays in cache, then multiplies all rows.

Rows are taken ``block_rows`` at a time; the last block starts early enough to be whole, so a few rows are computed
twice (with the same result) instead of by slower code. Fewer rows than a block are computed one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, splat, store, vector, zero_registers
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import INPUT_MULTIPLE, PackedLayout
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.decode import load_weight
from bitwright.codegen.linear.dot import dot_of
from bitwright.codegen.linear.int8_group import accumulate_chunk, centred, packed_x
from bitwright.codegen.linear.lookup import looked_up
from bitwright.codegen.linear.unpack import group_offset, group_scale, step_codes


def _int8_block(isa: Isa, layout: PackedLayout) -> tuple[int, int]:
    """Rows and vectors of outputs of a register block; measured on Zen 4 for the AVX2 path."""
    if isa.dot == "maddubs":
        # Each activation is a broadcast load, which costs no arithmetic; wider codes need registers for shorter chains.
        return (10, 1) if layout.weight.operand_bits <= 4 else (8, 1)
    if isa.registers > 16:
        return 12 // layout.blocks, layout.blocks
    return (2, 3) if layout.blocks == 3 else (4, 2)


def _float_block(isa: Isa, layout: PackedLayout) -> tuple[int, int]:
    """The same for multiply-adds in single precision: twelve accumulators of sixteen registers, 24 of 32."""
    if isa.registers > 16:
        return 24 // layout.blocks, layout.blocks
    return (4, 3) if layout.blocks == 3 else (6, 2)


def _rows(tokens: Any, block_rows: int, micro: Callable[[Any, int], None]) -> None:
    """Calls ``micro(first row, rows)`` so that every row is covered."""
    with T.If(tokens >= T.int64(block_rows)):
        with T.Then(), loop((tokens + (block_rows - 1)) // T.int64(block_rows)) as block:
            micro(T.min(block * block_rows, tokens - block_rows), block_rows)
        with T.Else(), loop(tokens) as row:
            micro(row, 1)


def prefill_int8(args: Arguments, tile: Any) -> None:
    """Packed weights and int8 activations."""
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

    block_rows, columns = _int8_block(isa, layout)

    def micro(first_row: Any, rows: int) -> None:
        for first_block in range(0, layout.blocks, columns):
            _int8_results(args, tile, first_row, rows, first_block, columns, operands, scales, offsets)

    _rows(args.tokens, block_rows, micro)


def _int8_results(
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
    layout, lanes = args.layout, args.layout.lanes
    dot = dot_of(args.isa, layout.weight.operand_bits)
    chunk_steps = INPUT_MULTIPLE // 4
    chunks = layout.group // INPUT_MULTIPLE
    results = zero_registers(rows * columns, vector("float32", lanes))

    def chunk_sums(totals: Registers, chunk: Any) -> None:
        def operand(block: int, step: Any) -> Any:
            return load(operands, [chunk * chunk_steps + step, first_block + block, 0], 4 * lanes)

        def activation(row: int, step: Any) -> Any:
            return packed_x(args["x8"], first_row + row, chunk * INPUT_MULTIPLE + 4 * step)

        accumulate_chunk(dot, totals, rows, columns, operand, activation, unroll=False)

    with loop(layout.groups) as group:
        totals = zero_registers(rows * columns, vector("int32", lanes))
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
                total = centred(dot, totals[index], offset, args["sum"][first_row + row, group])
                x_scale = splat(args["scale"][first_row + row, group], lanes)
                scale = load(scales, [group, first_block + block, 0], lanes) * x_scale
                results[index] = results[index] + T.cast(total, vector("float32", lanes)) * scale
    for row in range(rows):
        for block in range(columns):
            args.write(first_row + row, tile, first_block + block, results[row * columns + block])


def prefill_float(args: Arguments, tile: Any) -> None:
    """Float activations; weights of any scheme become single precision once per tile."""
    layout, lanes = args.layout, args.layout.lanes
    weights, base = _float_weights(args, tile)
    block_rows, columns = _float_block(args.isa, layout)

    def micro(first_row: Any, rows: int) -> None:
        for first_block in range(0, layout.blocks, columns):
            results = zero_registers(rows * columns, vector("float32", lanes))
            unroll = 4 if layout.inputs % 4 == 0 else 1
            with loop(layout.inputs // unroll) as outer:
                for inner in range(unroll):
                    k = outer * unroll + inner
                    for row in range(rows):
                        x = splat(args["x"][first_row + row, k], lanes)
                        for block in range(columns):
                            weight = load(weights, [*base, k, (first_block + block) * lanes], lanes)
                            results[row * columns + block] = results[row * columns + block] + weight * x
            for row in range(rows):
                for block in range(columns):
                    args.write(first_row + row, tile, first_block + block, results[row * columns + block])

    _rows(args.tokens, block_rows, micro)


def _float_weights(args: Arguments, tile: Any) -> tuple[Any, list[Any]]:
    """A buffer f32 [..., inputs, rows] with the tile's weights, and the leading indices of the tile in it."""
    layout, lanes = args.layout, args.layout.lanes
    if layout.weight.is_float and layout.weight.bits == 32:
        return args["weights"], [tile]
    scratch = T.alloc_buffer((layout.inputs, layout.rows), "float32")
    if layout.weight.is_float:
        with loop(layout.inputs) as k:
            for block in range(layout.blocks):
                store(scratch, load_weight(args, tile, k, block), [k, block * lanes], lanes)
        return scratch, []
    operands = looked_up(args)
    units = layout.group // layout.unit
    with loop(layout.groups) as group, loop(units) as inner:
        unit = group * units + inner
        for block in range(layout.blocks):
            scale = group_scale(args["scales"], args.isa, tile, group, block)
            offset = group_offset(args.zeros, layout, 0, tile, group, block)
            offset = splat(T.int32(offset), lanes) if isinstance(offset, int) else offset
            for step in range(layout.unit // 4):
                codes = operands(step_codes(args["codes"], layout, tile, unit, block, step))
                words = T.reinterpret(codes, dtype=vector("uint32", lanes))
                for byte in range(4):
                    code = (words >> splat(T.uint32(8 * byte), lanes)) & splat(T.uint32(255), lanes)
                    centred = T.cast(code, vector("int32", lanes)) + offset
                    value = T.cast(centred, vector("float32", lanes)) * scale
                    store(scratch, value, [unit * layout.unit + 4 * step + byte, block * lanes], lanes)
    return scratch, []
