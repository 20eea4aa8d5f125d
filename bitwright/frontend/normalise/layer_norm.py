"""``(x - mean(x)) / sqrt(mean((x - mean(x))**2) + eps)`` over the last axis becomes ``LayerNormalization`` (gain 1,
bias 0).

Source of the formula: Ba, Kiros & Hinton 2016.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, dims, producer
from bitwright.frontend.normalise.rewrite import Key, Rewrite
from bitwright.frontend.normalise.rms_norm import inverse_root, mean_over_last, plus_epsilon, squared


def _centred(value: ir.Value | None) -> ir.Value | None:
    """``x`` if ``value`` is ``x - mean(x)``."""
    node = producer(value)
    if node is None or node.op_type != "Sub":
        return None
    return node.inputs[0] if mean_over_last(node.inputs[1]) is node.inputs[0] else None


def _readings(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """(centred x, variance + eps) readings of a Div or Mul."""
    if node.op_type == "Div":
        root = producer(node.inputs[1])
        return [(node.inputs[0], root.inputs[0])] if root is not None and root.op_type == "Sqrt" else []
    return [(node.inputs[i], inverse_root(node.inputs[1 - i])) for i in (0, 1)]


def _apply(node: ir.Node, editor: Editor) -> bool:
    for centred, inside in _readings(node):
        x, parts = _centred(centred), plus_epsilon(inside)
        shape = dims(x)
        if x is None or parts is None or not shape or not isinstance(shape[-1], int):
            continue
        if _centred(squared(mean_over_last(parts[0]))) is not x:
            continue
        gain = editor.initializer(np.ones(shape[-1], np.float32), "ones")
        bias = editor.initializer(np.zeros(shape[-1], np.float32), "zeros")
        normed = editor.op(node, "LayerNormalization", [x, gain, bias], shape, axis=-1, epsilon=parts[1])
        editor.replace(node.outputs[0], normed)
        return True
    return False


REWRITE = Rewrite("layer norm", (Key("Div"), Key("Mul")), _apply)
