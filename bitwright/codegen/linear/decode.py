"""One token: y = W x. Weights stream through once and are unpacked in registers; the time is that of reading them."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, splat, store, vector, zero_registers
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.dot import dot_of
from bitwright.codegen.linear.int8_group import accumulate_chunk, centred, packed_x
from bitwright.codegen.linear.lookup import looked_up
from bitwright.codegen.linear.unpack import (
    byte_weight,
    code_of_byte,
    group_offset,
    group_scale,
    step_codes,
    widen_half,
)


def decode_int8(args: Arguments, tile: Any) -> None:
    """Packed weights and int8 activations: one tile of results."""
    layout, lanes = args.layout, args.layout.lanes
    dot = dot_of(args.isa, layout.weight.operand_bits)
    prepared = looked_up(args, dot.prepare)
    results = zero_registers(layout.blocks, vector("float32", lanes))
    chunks = layout.group // INPUT_MULTIPLE
    units = INPUT_MULTIPLE // layout.unit

    def chunk_sums(totals: Registers, first_unit: Any) -> None:
        def operand(block: int, step: int) -> Any:
            unit, inner = divmod(step, layout.unit // 4)
            return prepared(step_codes(args["codes"], layout, tile, first_unit + unit, block, inner))

        def activation(_row: int, step: int) -> Any:
            return packed_x(args["x8"], 0, first_unit * layout.unit + 4 * step)

        accumulate_chunk(dot, totals, 1, layout.blocks, operand, activation, unroll=True)

    with loop(layout.groups) as group:
        totals = zero_registers(layout.blocks, vector("int32", lanes))
        if chunks == 1:
            chunk_sums(totals, group * units)
        else:
            with loop(chunks) as chunk:
                chunk_sums(totals, (group * chunks + chunk) * units)
        for block in range(layout.blocks):
            offset = group_offset(args.zeros, layout, dot.bias, tile, group, block)
            total = centred(dot, totals[block], offset, args["sum"][0, group])
            scale = group_scale(args["scales"], args.isa, tile, group, block) * splat(args["scale"][0, group], lanes)
            results[block] = results[block] + T.cast(total, vector("float32", lanes)) * scale
    for block in range(layout.blocks):
        args.write(0, tile, block, results[block])


def prepare_float_activations(args: Arguments) -> tuple[Any, Any]:
    """Scratch for ``decode_packed_float``: x times ``byte_weight``, and the sum of x over each group."""
    layout = args.layout
    weighted = T.alloc_buffer((layout.inputs,), "float32")
    sums = T.alloc_buffer((layout.groups,), "float32")
    with loop(layout.groups) as group:
        total = zero_registers(4, "float32")
        with loop(layout.group // 4) as step:
            for byte in range(4):
                k = group * layout.group + step * 4 + byte
                value = args["x"][0, k]
                total[byte] = total[byte] + value
                store(weighted, value * T.float32(byte_weight(byte)), [k], 1)
        store(sums, (total[0] + total[1]) + (total[2] + total[3]), [group], 1)
    return weighted, sums


def decode_packed_float(args: Arguments, tile: Any, weighted: Any, sums: Any) -> None:
    """Packed weights and float activations: sum(code * x) - zero * sum(x) in each group, in single precision."""
    layout, lanes = args.layout, args.layout.lanes
    results = zero_registers(layout.blocks, vector("float32", lanes))
    operands = looked_up(args)
    units = layout.group // layout.unit
    with loop(layout.groups) as group:
        totals = zero_registers(layout.blocks, vector("float32", lanes))
        with loop(units) as inner:
            unit = group * units + inner
            for step in range(layout.unit // 4):
                for block in range(layout.blocks):
                    codes = operands(step_codes(args["codes"], layout, tile, unit, block, step))
                    for byte in range(4):
                        x = splat(weighted[unit * layout.unit + 4 * step + byte], lanes)
                        totals[block] = totals[block] + code_of_byte(codes, byte, lanes) * x
        for block in range(layout.blocks):
            offset = group_offset(args.zeros, layout, 0, tile, group, block)
            if isinstance(offset, int):
                centre = splat(sums[group] * T.float32(offset), lanes)
            else:
                centre = T.cast(offset, vector("float32", lanes)) * splat(sums[group], lanes)
            total = totals[block] + centre
            results[block] = results[block] + total * group_scale(args["scales"], args.isa, tile, group, block)
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
