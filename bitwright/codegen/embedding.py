"""Embedding lookup: gathers and dequantizes rows of a table in the packed layout, which a tied lm_head shares.

Importing this module imports TVM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, kernel, loop, store, symbol
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout, TensorSpec
from bitwright.codegen.linear.arguments import Arguments, of_parts
from bitwright.codegen.linear.legality import require_legal
from bitwright.codegen.linear.spec import TOKENS, AnyLinear, part_arguments
from bitwright.codegen.linear.unpack import widen_half


def embedding_arguments(table: AnyLinear, isa: Isa, *, ranked: bool = False) -> tuple[TensorSpec, ...]:
    """Arguments in order: ids, the packed table (of each of its parts), with ``ranked`` the row of each token, the
    result ``y``."""
    tokens = table.rows or TOKENS
    weights = [tensor for part in part_arguments(table, isa) for tensor in part.weights.values()]
    rank = [TensorSpec("rank", "int32", (table.outputs,))] if ranked else []
    return (TensorSpec("ids", "int64", (tokens,)), *weights, *rank, TensorSpec("y", "float32", (tokens, table.inputs)))


def build_embedding(table: AnyLinear, isa: Isa, name: str = "embedding", *, ranked: bool = False) -> Any:
    """PrimFunc (ids i64[n], packed table [, rank i32[vocabulary]], y f32[n,width]).

    The caller guarantees 0 <= id < vocabulary: the kernel does not check.

    Args:
        table: its outputs are the vocabulary, its inputs the width, its parts runs of rows.
        ranked: the row of token t is rank[t], else t.

    Raises:
        UnsupportedError: the table's scheme has no kernel at this shape.
    """
    require_legal(table, isa)
    with kernel(name) as function:
        tokens = symbol("n") if table.rows is None else table.rows
        buffers = {
            tensor.name: function.tensor(
                tensor.name, [tokens if extent == TOKENS else extent for extent in tensor.shape], tensor.dtype
            )
            for tensor in embedding_arguments(table, isa, ranked=ranked)
        }
        parts = of_parts(table, isa, tokens, buffers)
        with loop(tokens, "parallel" if table.rows is None else "serial") as token:
            row = buffers["ids"][token]
            _read_row(parts, token, T.cast(buffers["rank"][row], "int64") if ranked else row)
    return function.func


def _read_row(parts: Sequence[Arguments], token: Any, row: Any) -> None:
    """Row ``row`` of the first part, or of the others when it has fewer."""
    first, *others = parts
    read = _copy_row if first.layout.weight.is_float else _dequantize_row
    if not others:
        read(first, token, row)
        return
    with T.If(row < T.int64(first.layout.outputs)):
        with T.Then():
            read(first, token, row)
        with T.Else():
            _read_row(others, token, row - first.layout.outputs)


def _copy_row(args: Arguments, token: Any, row: Any) -> None:
    layout = args.layout
    tile, inner = row // layout.rows, row % layout.rows
    with loop(layout.inputs) as k:
        value = args["weights"][tile, k, inner]
        store(args["y"], widen_half(value, args.isa, 1) if layout.weight.bits == 16 else value, [token, k], 1)


def _dequantize_row(args: Arguments, token: Any, row: Any) -> None:
    layout = args.layout
    tile, inner = row // layout.rows, row % layout.rows
    block, lane = inner // layout.lanes, inner % layout.lanes
    units = layout.group // layout.unit
    scale, zero = Registers(1, "float32"), Registers(1, "int32")
    with loop(layout.groups) as group:
        scale[0] = widen_half(args["scales"][tile, group, block, lane], args.isa, 1)
        if layout.weight.symmetric:
            zero[0] = T.int32(layout.weight.centre)
        else:
            zero[0] = T.cast(args["zeros"][tile, group, block, lane], "int32")
        with loop(units) as index:
            unit = group * units + index
            for step in range(layout.unit // 4):
                for byte in range(4):
                    code = _code(args["codes"], layout, tile, unit, block, step, lane * 4 + byte)
                    if layout.weight.is_codebook:
                        code = T.cast(args["codebook"][code], "int32")
                    value = T.cast(code - zero[0], "float32") * scale[0]
                    store(args["y"], value, [token, unit * layout.unit + 4 * step + byte], 1)


def _code(codes: Any, layout: PackedLayout, tile: Any, unit: Any, block: Any, step: int, byte: Any) -> Any:
    """One code as int32."""
    result = None
    for piece in layout.fields[step]:
        line = T.cast(codes[tile, unit, block, piece.line, byte], "int32")
        field = (line >> T.int32(piece.source)) & T.int32((1 << piece.width) - 1)
        bits = field << T.int32(piece.position)
        result = bits if result is None else result | bits
    return result
