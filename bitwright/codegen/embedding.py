"""Embedding lookup: gathers and dequantizes rows of a table in the packed layout, which a tied lm_head shares.

Importing this module imports TVM.
"""

from __future__ import annotations

from typing import Any, Literal

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, kernel, loop, store, symbol
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout, TensorSpec, packed_layout
from bitwright.codegen.linear.legality import require_legal
from bitwright.codegen.linear.spec import TOKENS, LinearSpec
from bitwright.codegen.linear.unpack import widen_half
from bitwright.scheme import LinearScheme, WeightScheme


def embedding_arguments(
    vocabulary: int, width: int, weight: WeightScheme, isa: Isa, rows: Literal[1] | None = None
) -> tuple[TensorSpec, ...]:
    """Arguments in order: ids, the packed table, the result ``y``."""
    tokens = rows or TOKENS
    tensors = packed_layout(vocabulary, width, weight, isa.lanes).tensors
    return (TensorSpec("ids", "int64", (tokens,)), *tensors, TensorSpec("y", "float32", (tokens, width)))


def build_embedding(
    vocabulary: int,
    width: int,
    weight: WeightScheme,
    isa: Isa,
    rows: Literal[1] | None = None,
    name: str = "embedding",
) -> Any:
    """PrimFunc (ids i64[n], packed table, y f32[n,width]).

    The caller guarantees 0 <= id < vocabulary: the kernel does not check.

    Raises:
        UnsupportedError: the table's scheme has no kernel at this shape.
    """
    require_legal(LinearSpec(vocabulary, width, LinearScheme(weight)), isa)
    layout = packed_layout(vocabulary, width, weight, isa.lanes)
    with kernel(name) as function:
        tokens = symbol("n") if rows is None else rows
        buffers = {
            tensor.name: function.tensor(
                tensor.name, [tokens if extent == TOKENS else extent for extent in tensor.shape], tensor.dtype
            )
            for tensor in embedding_arguments(vocabulary, width, weight, isa, rows)
        }
        with loop(tokens, "parallel" if rows is None else "serial") as token:
            row = buffers["ids"][token]
            if weight.is_float:
                _copy_row(buffers, layout, isa, token, row)
            else:
                _dequantize_row(buffers, layout, isa, token, row)
    return function.func


def _copy_row(buffers: dict[str, Any], layout: PackedLayout, isa: Isa, token: Any, row: Any) -> None:
    tile, inner = row // layout.rows, row % layout.rows
    with loop(layout.inputs) as k:
        value = buffers["weights"][tile, k, inner]
        store(buffers["y"], widen_half(value, isa, 1) if layout.weight.bits == 16 else value, [token, k], 1)


def _dequantize_row(buffers: dict[str, Any], layout: PackedLayout, isa: Isa, token: Any, row: Any) -> None:
    tile, inner = row // layout.rows, row % layout.rows
    block, lane = inner // layout.lanes, inner % layout.lanes
    units = layout.group // layout.unit
    scale, zero = Registers(1, "float32"), Registers(1, "int32")
    with loop(layout.groups) as group:
        scale[0] = widen_half(buffers["scales"][tile, group, block, lane], isa, 1)
        if layout.weight.symmetric:
            zero[0] = T.int32(1 << (layout.weight.bits - 1))
        else:
            zero[0] = T.cast(buffers["zeros"][tile, group, block, lane], "int32")
        with loop(units) as index:
            unit = group * units + index
            for step in range(layout.unit // 4):
                for byte in range(4):
                    code = _code(buffers["codes"], layout, tile, unit, block, step, lane * 4 + byte)
                    value = T.cast(code - zero[0], "float32") * scale[0]
                    store(buffers["y"], value, [token, unit * layout.unit + 4 * step + byte], 1)


def _code(codes: Any, layout: PackedLayout, tile: Any, unit: Any, block: Any, step: int, byte: Any) -> Any:
    """One code as int32."""
    result = None
    for piece in layout.fields[step]:
        line = T.cast(codes[tile, unit, block, piece.line, byte], "int32")
        field = (line >> T.int32(piece.source)) & T.int32((1 << piece.width) - 1)
        bits = field << T.int32(piece.position)
        result = bits if result is None else result | bits
    return result
