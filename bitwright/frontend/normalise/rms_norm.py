"""``x / sqrt(mean(x**2) + eps)`` over the last axis becomes ``RMSNormalization`` with a gain of ones.

Source of the formula: Zhang & Sennrich 2019, as exporters spell it: Pow or Mul, ReduceMean, Add, Sqrt, then
Reciprocal and Mul, or Div.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, dims, integers, producer, scalar
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def mean_over_last(value: ir.Value | None) -> ir.Value | None:
    """``x`` if ``value`` is ``ReduceMean(x)`` over the last axis with the axis kept."""
    node = producer(value)
    if node is None or node.op_type != "ReduceMean" or node.inputs[0] is None or attribute(node, "keepdims", 1) != 1:
        return None
    axes = attribute(node, "axes")  # an attribute before opset 18, an input since
    if axes is None and len(node.inputs) > 1:
        axes = integers(node.inputs[1])
    shape = dims(node.inputs[0])
    return node.inputs[0] if shape is not None and axes is not None and list(axes) in ([-1], [len(shape) - 1]) else None


def squared(value: ir.Value | None) -> ir.Value | None:
    """``x`` if ``value`` is ``x ** 2`` or ``x * x``."""
    node = producer(value)
    if node is None or len(node.inputs) != 2:
        return None
    if node.op_type == "Pow" and scalar(node.inputs[1]) == 2.0:
        return node.inputs[0]
    return node.inputs[0] if node.op_type == "Mul" and node.inputs[0] is node.inputs[1] else None


def plus_epsilon(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """``(x, eps)`` if ``value`` is ``x + eps`` with a constant."""
    node = producer(value)
    if node is None or node.op_type != "Add":
        return None
    for x, eps in (node.inputs, node.inputs[::-1]):
        number = scalar(eps)
        if x is not None and number is not None:
            return x, number
    return None


def inverse_root(value: ir.Value | None) -> ir.Value | None:
    """``v`` if ``value`` is ``1 / sqrt(v)``."""
    node = producer(value)
    if node is None:
        return None
    if node.op_type == "Reciprocal":
        root = producer(node.inputs[0])
    elif node.op_type == "Div" and scalar(node.inputs[0]) == 1.0:
        root = producer(node.inputs[1])
    elif node.op_type == "Pow" and scalar(node.inputs[1]) == -0.5:
        return node.inputs[0]
    else:
        return None
    return root.inputs[0] if root is not None and root.op_type == "Sqrt" else None


def _variance_plus_epsilon(node: ir.Node) -> list[tuple[ir.Value, ir.Value | None]]:
    """(x, variance + eps) readings of a Mul or Div node."""
    if node.op_type == "Div":
        root = producer(node.inputs[1])
        x = node.inputs[0]
        return [(x, root.inputs[0])] if x is not None and root is not None and root.op_type == "Sqrt" else []
    pairs = ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0]))
    return [(x, inverse_root(other)) for x, other in pairs if x is not None]


def _apply(node: ir.Node, editor: Editor) -> bool:
    for x, inside in _variance_plus_epsilon(node):
        parts = plus_epsilon(inside)
        shape = dims(x)
        if parts is None or not shape or not isinstance(shape[-1], int) or squared(mean_over_last(parts[0])) is not x:
            continue
        gain = editor.initializer(np.ones(shape[-1], np.float32), "ones")
        normed = editor.op(node, "RMSNormalization", [x, gain], shape, axis=-1, epsilon=parts[1])
        editor.replace(node.outputs[0], normed)
        return True
    return False


REWRITE = Rewrite("rms norm", (Key("Mul"), Key("Div")), _apply)
