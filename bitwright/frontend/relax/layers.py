"""The operators a language model is made of: linear layers, tables, rotary positions, attention."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from bitwright import relax_ops
from bitwright.frontend.relax.context import Context, Initializer, Ranks, attribute, unsupported
from bitwright.frontend.relax.registry import converter


@converter("MatMul")
def matmul(context: Context, node: ir.Node) -> Any:
    weight = context.raw(node.inputs[1])
    if not isinstance(weight, Initializer) or len(weight.shape) != 2:
        raise unsupported(node, "the right factor is not a constant matrix (attention must be canonical first)")
    x = context.expression(node.inputs[0])
    if len(x.ty.shape.values) != 2:
        raise unsupported(node, f"the left factor has {len(x.ty.shape.values) + 1} axes, not batch, tokens and width")
    return context.emit(relax_ops.call("linear", [x, context.parameter(weight, transpose=True)], site="", scheme=""))


@converter("Gather")
def gather(context: Context, node: ir.Node) -> Any:
    table, indices = (context.raw(value) for value in node.inputs[:2])
    if isinstance(indices, Initializer):
        return _put_in_order(context, node, table, indices)
    if not isinstance(table, Initializer) or len(table.shape) not in (1, 2) or attribute(node, "axis", 0) != 0:
        raise unsupported(node, "only rows of a constant table can be gathered")
    if len(table.shape) == 1:
        return Ranks(indices, table)
    if node.inputs[1] is not None and node.inputs[1].name == "position_ids":
        _check_positions(context, node, table)
    arguments = [indices, context.parameter(table)]
    if isinstance(indices, Ranks):
        arguments = [indices.ids, context.parameter(table), context.parameter(indices.table)]
    return context.emit(relax_ops.call("embedding", arguments, site="", scheme=""))


def _put_in_order(context: Context, node: ir.Node, x: Any, indices: Initializer) -> Any:
    """Elements of rows, all of them, in another order."""
    if isinstance(x, Initializer) or len(x.ty.shape.values) != 2 or attribute(node, "axis", 0) not in (-1, 2):
        raise unsupported(node, "constant indices pick elements of rows only")
    if indices.shape != (int(x.ty.shape.values[1]),):
        raise unsupported(node, f"{indices.shape} indices for rows of {x.ty.shape.values[1]} elements")
    return context.emit(relax_ops.call("put_in_order", [x, context.parameter(indices)]))


@converter("RotaryEmbedding")
def rotary(context: Context, node: ir.Node) -> Any:
    if len(node.inputs) < 4 or node.inputs[3] is None:
        raise unsupported(node, "position ids are missing")
    x = context.expression(node.inputs[0])
    tables = [context.raw(v) for v in node.inputs[1:3]]
    if not all(isinstance(table, Initializer) for table in tables):
        raise unsupported(node, "cos and sin are not constant tables")
    positions = context.expression(node.inputs[3])
    heads = int(attribute(node, "num_heads", 0))
    if heads <= 0:
        raise unsupported(node, "num_heads is missing")
    head_dim = int(x.ty.shape.values[-1]) // heads
    rotary_dim = int(attribute(node, "rotary_embedding_dim", 0)) or head_dim
    if any(len(table.shape) != 2 or 2 * table.shape[1] != rotary_dim for table in tables):
        shapes = " and ".join(str(list(table.shape)) for table in tables)
        raise unsupported(node, f"tables of {shapes} do not rotate {rotary_dim} elements of a head of {head_dim}")
    for table in tables:
        _check_positions(context, node, table)
    arguments = [x, *(context.parameter(table, rows=context.capacity) for table in tables), positions]
    return context.emit(
        relax_ops.call(
            "rope",
            arguments,
            heads=heads,
            rotary_dim=rotary_dim,
            interleaved=int(attribute(node, "interleaved", 0)),
        )
    )


def _check_positions(context: Context, node: ir.Node, table: Initializer) -> None:
    """Refuse a table of positions that is shorter than the context: kernels would read behind it."""
    if table.shape[0] < context.capacity:
        raise unsupported(node, f"a table of {table.shape[0]} positions in a context of {context.capacity}")


@converter("Rotate", domain="bitwright")
def rotate(context: Context, node: ir.Node) -> Any:
    attributes = {name: int(attribute(node, name, 0)) for name in ("blocks", "order", "power", "transposed")}
    return context.emit(relax_ops.call("rotate", [context.expression(node.inputs[0])], **attributes))


@converter("Attention")
@converter("Attention", domain="bitwright")
def attention(context: Context, node: ir.Node) -> Any:
    q, k, v = (context.expression(value) for value in node.inputs[:3])
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        raise unsupported(node, "an explicit mask remains")
    causal = bool(attribute(node, "is_causal", 0))
    cached = len(node.inputs) > 5 and node.inputs[4] is not None
    if causal != cached:
        raise unsupported(node, "causal attention needs a cache, and a cache needs causal attention")
    q_heads, kv_heads = int(attribute(node, "q_num_heads", 0)), int(attribute(node, "kv_num_heads", 0))
    if q_heads <= 0 or kv_heads <= 0 or q_heads % kv_heads:
        raise unsupported(node, f"{q_heads} query heads over {kv_heads} key/value heads")
    head_dim = int(q.ty.shape.values[1]) // q_heads
    common = {
        "q_heads": q_heads,
        "kv_heads": kv_heads,
        "scale": float(attribute(node, "scale", head_dim**-0.5)),
        "softcap": float(attribute(node, "softcap", 0.0)),
    }
    if not cached:
        return context.emit(relax_ops.call("attention_full", [q, k, v], **common))
    index = context.cached_attentions
    context.cached_attentions += 1
    window = int(attribute(node, "window", 0))
    arguments = [q, k, v, *context.caches[index], context.position]
    return context.emit(
        relax_ops.call("attention", arguments, **common, window=window, layer=index, k_scheme="", v_scheme="")
    )
