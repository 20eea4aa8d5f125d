"""Float weights and any number of tokens: a tile of weights is multiplied by a few rows at a time."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import load, loop, splat, store, vector, zero_registers
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.decode import load_weight
from bitwright.codegen.linear.row_blocks import for_row_blocks


def _block(isa: Isa, layout: PackedLayout) -> tuple[int, int]:
    """Rows and vectors of outputs of a register block: twelve accumulators of sixteen registers, 24 of 32."""
    if isa.registers > 16:
        return 24 // layout.blocks, layout.blocks
    columns = layout.blocks if layout.blocks == 3 else min(layout.blocks, 2)
    return 12 // columns, columns


def prefill_float(args: Arguments, tile: Any) -> None:
    """Half-precision weights become single precision once per tile."""
    layout, lanes = args.layout, args.layout.lanes
    weights, base = _float_weights(args, tile)
    block_rows, columns = _block(args.isa, layout)

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

    for_row_blocks(T.int64(0), args.tokens, block_rows, micro)


def _float_weights(args: Arguments, tile: Any) -> tuple[Any, list[Any]]:
    """A buffer f32 [..., inputs, rows] with the tile's weights, and the leading indices of the tile in it."""
    layout, lanes = args.layout, args.layout.lanes
    if layout.weight.bits == 32:
        return args["weights"], [tile]
    scratch = T.alloc_buffer((layout.inputs, layout.rows), "float32")
    with loop(layout.inputs) as k:
        for block in range(layout.blocks):
            store(scratch, load_weight(args, tile, k, block), [k, block * lanes], lanes)
    return scratch, []
