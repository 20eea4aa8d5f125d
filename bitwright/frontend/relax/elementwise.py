"""Elementwise operators and normalisations."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax

from bitwright.frontend.relax.context import Context, attribute, axis_without_batch, unsupported
from bitwright.frontend.relax.registry import converter

_BINARY = {
    "Add": relax.op.add,
    "Sub": relax.op.subtract,
    "Mul": relax.op.multiply,
    "Div": relax.op.divide,
    "Pow": relax.op.power,
}
_UNARY = {
    "Neg": relax.op.negative,
    "Sqrt": relax.op.sqrt,
    "Tanh": relax.op.tanh,
    "Sigmoid": relax.op.sigmoid,
    "Erf": relax.op.erf,
    "Exp": relax.op.exp,
    "Relu": relax.op.nn.relu,
}


@converter(*_BINARY)
def binary(context: Context, node: ir.Node) -> Any:
    left, right = (context.expression(v) for v in node.inputs)
    return context.emit(_BINARY[node.op_type](left, right))


@converter(*_UNARY)
def unary(context: Context, node: ir.Node) -> Any:
    return context.emit(_UNARY[node.op_type](context.expression(node.inputs[0])))


@converter("Identity")
def identity(context: Context, node: ir.Node) -> Any:
    return context.raw(node.inputs[0])


@converter("Gelu")
def gelu(context: Context, node: ir.Node) -> Any:
    approximate = attribute(node, "approximate", "none")
    operator = relax.op.nn.gelu_tanh if approximate == "tanh" else relax.op.nn.gelu
    return context.emit(operator(context.expression(node.inputs[0])))


@converter("Softmax")
def softmax(context: Context, node: ir.Node) -> Any:
    axis = attribute(node, "axis", -1)
    return context.emit(relax.op.nn.softmax(context.expression(node.inputs[0]), axis_without_batch(node, axis)))


def _check_last_axis(node: ir.Node) -> None:
    axis = attribute(node, "axis", -1)
    rank = node.inputs[0].shape.rank() if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    if axis != -1 and (rank is None or axis != rank - 1):
        raise unsupported(node, f"normalisation along axis {axis}")


def _check_row(node: ir.Node, x: Any, row: Any, what: str) -> None:
    """Kernels read one factor (or bias) per element of a row: nothing is broadcast."""
    width, shape = int(x.ty.shape.values[-1]), [int(extent) for extent in row.ty.shape.values]
    if shape != [width]:
        raise unsupported(node, f"a {what} of shape {shape} for rows of {width}")


@converter("RMSNormalization")
def rms_norm(context: Context, node: ir.Node) -> Any:
    _check_last_axis(node)
    x, gain = (context.expression(v) for v in node.inputs[:2])
    _check_row(node, x, gain, "gain")
    epsilon = float(attribute(node, "epsilon", 1e-5))
    return context.emit(relax.op.nn.rms_norm(x, gain, axes=[-1], epsilon=epsilon))


@converter("LayerNormalization")
def layer_norm(context: Context, node: ir.Node) -> Any:
    _check_last_axis(node)
    x, gain = (context.expression(v) for v in node.inputs[:2])
    _check_row(node, x, gain, "gain")
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = context.expression(node.inputs[2]) if has_bias else context.emit(relax.op.zeros_like(gain))
    _check_row(node, x, bias, "bias")
    epsilon = float(attribute(node, "epsilon", 1e-5))
    return context.emit(relax.op.nn.layer_norm(x, gain, bias, axes=[-1], epsilon=epsilon))
