"""One token: y = W x. Weights stream through once and are unpacked in registers; the time is that of reading them."""

from __future__ import annotations

from typing import Any

from bitwright.codegen.builder import Registers, load, loop, splat, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.dot import dot_of
from bitwright.codegen.linear.int8_group import accumulate_chunk, group_total, packed_x
from bitwright.codegen.linear.unpack import (
    group_offset,
    group_scale,
    step_codes,
    widen_half,
)


def decode_packed(args: Arguments, tile: Any) -> None:
    """Packed weights and quantized activations: one tile of results. Each unpacked operand multiplies every term."""
    layout, lanes, terms = args.layout, args.layout.lanes, args.terms
    dot = dot_of(args.isa, layout.weight.bits)
    results = zero_registers(layout.blocks, vector("float32", lanes))
    chunks = layout.group // INPUT_MULTIPLE
    units = INPUT_MULTIPLE // layout.unit

    def chunk_sums(totals: Registers, first_unit: Any) -> None:
        def operand(block: int, step: int) -> Any:
            unit, inner = divmod(step, layout.unit // 4)
            return dot.prepare(step_codes(args["codes"], layout, tile, first_unit + unit, block, inner))

        def activation(term: int, step: int) -> Any:
            return packed_x(args["x8"], 0, first_unit * layout.unit + 4 * step + term * layout.inputs)

        accumulate_chunk(dot, totals, terms, layout.blocks, operand, activation, unroll=True)

    with loop(layout.groups) as group:
        totals = zero_registers(terms * layout.blocks, vector("int32", lanes))
        if chunks == 1:
            chunk_sums(totals, group * units)
        else:
            with loop(chunks) as chunk:
                chunk_sums(totals, (group * chunks + chunk) * units)
        for block in range(layout.blocks):
            offset = group_offset(args.zeros, layout, dot.bias, tile, group, block)
            sums = [totals[term * layout.blocks + block] for term in range(terms)]
            total = group_total(dot, sums, offset, args["sum"][0, group], layout.group)
            scale = group_scale(args["scales"], args.isa, tile, group, block) * splat(args["scale"][0, group], lanes)
            results[block] = results[block] + total * scale
    for block in range(layout.blocks):
        args.write(0, tile, block, results[block])


def decode_float(args: Arguments, tile: Any) -> None:
    """Float weights: a multiply-add per weight."""
    layout, lanes = args.layout, args.layout.lanes
    results = zero_registers(layout.blocks, vector("float32", lanes))

    def step(k: Any) -> None:
        for block in range(layout.blocks):
            weight = load_weight(args, tile, k, block)
            results[block] = results[block] + weight * splat(args["x"][0, k], lanes)

    unroll = 4 if layout.inputs % 4 == 0 else 1
    with loop(layout.inputs // unroll) as outer:
        for inner in range(unroll):
            step(outer * unroll + inner)
    for block in range(layout.blocks):
        args.write(0, tile, block, results[block])


def load_weight(args: Arguments, tile: Any, k: Any, block: int) -> Any:
    """f32 x lanes of float weights."""
    lanes = args.layout.lanes
    value = load(args["weights"], [tile, k, block * lanes], lanes)
    return widen_half(value, args.isa, lanes) if args.layout.weight.bits == 16 else value
