"""Operators that move or reshape data."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax, tirx

from bitwright.frontend.relax.context import Context, Initializer, attribute, axis_without_batch, constant, unsupported
from bitwright.frontend.relax.registry import converter

_CAST = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.INT32: "int32", ir.DataType.BOOL: "bool"}


@converter("Reshape")
def reshape(context: Context, node: ir.Node) -> Any:
    shape = constant(context, node.inputs[1], node)
    if not shape or shape[0] != 1 or shape.count(-1) > 1 or any(d == 0 or d < -1 for d in shape):
        raise unsupported(node, f"the shape {shape} does not keep a leading batch axis of 1 and one token axis")
    x = context.expression(node.inputs[0])
    return context.emit(relax.op.reshape(x, [context.rows if d == -1 else d for d in shape[1:]]))


@converter("Transpose")
def transpose(context: Context, node: ir.Node) -> Any:
    raw = context.raw(node.inputs[0])
    order = [int(a) for a in attribute(node, "perm", [])]
    if isinstance(raw, Initializer):
        if order not in ([], [1, 0]) or len(raw.shape) != 2:
            raise unsupported(node, f"a constant of shape {raw.shape} is permuted by {order}")
        return Initializer(raw.value, not raw.transposed)
    if not order or order[0] != 0:
        raise unsupported(node, "the batch axis moves")
    return context.emit(relax.op.permute_dims(raw, [axis - 1 for axis in order[1:]]))


@converter("Concat")
def concat(context: Context, node: ir.Node) -> Any:
    axis = axis_without_batch(node, attribute(node, "axis", 0))
    return context.emit(relax.op.concat([context.expression(v) for v in node.inputs], axis))


@converter("Split")
def split(context: Context, node: ir.Node) -> Any:
    x = context.expression(node.inputs[0])
    axis = axis_without_batch(node, attribute(node, "axis", 0))
    sizes = constant(context, node.inputs[1], node) if len(node.inputs) > 1 else None
    if sizes is None:
        pieces: Any = len(node.outputs)
    else:
        pieces = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = context.emit(relax.op.split(x, pieces, axis))
    return tuple(context.emit(relax.TupleGetItem(parts, i)) for i in range(len(node.outputs)))


@converter("Slice")
def slice_(context: Context, node: ir.Node) -> Any:
    starts, ends, axes, steps = (
        constant(context, node.inputs[i], node) if len(node.inputs) > i else None for i in range(1, 5)
    )
    if starts is None or ends is None or axes is None or any(s != 1 for s in steps or [1]):
        raise unsupported(node, "slices need constant bounds, axes and steps of 1")
    x = context.expression(node.inputs[0])
    where = [axis_without_batch(node, a) for a in axes]
    extents = [x.ty.shape.values[a] for a in where]
    if any(not isinstance(extent, tirx.IntImm) for extent in extents):
        raise unsupported(node, "tokens are cut off")
    sizes = [int(extent) for extent in extents]
    begin, end = ([_clamped(b, size) for b, size in zip(bounds, sizes, strict=True)] for bounds in (starts, ends))
    return context.emit(relax.op.strided_slice(x, axes=where, begin=begin, end=end))


def _clamped(bound: int, size: int) -> int:
    """A bound of a slice as ONNX reads it: negative ones count from the end, all are moved into 0..size."""
    return min(max(bound if bound >= 0 else bound + size, 0), size)


@converter("Cast")
def cast(context: Context, node: ir.Node) -> Any:
    kind = ir.DataType(attribute(node, "to", 0))
    if kind not in _CAST:
        raise unsupported(node, f"cast to {kind.name}")
    return context.emit(relax.op.astype(context.expression(node.inputs[0]), _CAST[kind]))


@converter("Where")
def where(context: Context, node: ir.Node) -> Any:
    return context.emit(relax.op.where(*(context.expression(v) for v in node.inputs)))
