"""A constant vector multiplied to a normalisation becomes its gain; one added to it becomes a LayerNormalization's
bias.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, dims, is_op, producer
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _is_vector(value: ir.Value | None, width: object) -> bool:
    if value is None or value.const_value is None or not isinstance(width, int):
        return False
    sizes = [int(d) for d in value.const_value.shape]
    return bool(sizes) and sizes[-1] == width and all(d == 1 for d in sizes[:-1])


def _is_all(value: ir.Value | None, number: float) -> bool:
    content = None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())
    return content is not None and bool(np.all(content == number))


def _apply(node: ir.Node, editor: Editor) -> bool:
    for normed, vector in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        norm = producer(normed)
        shape = dims(normed)
        if norm is None or normed is None or vector is None or shape is None or not _is_vector(vector, shape[-1]):
            continue
        if not is_op(normed, "RMSNormalization", "LayerNormalization") or len(normed.uses()) != 1:
            continue
        inputs = list(norm.inputs)
        if node.op_type == "Mul":
            if not _is_all(inputs[1], 1.0) or (len(inputs) > 2 and not _is_all(inputs[2], 0.0)):
                continue
            inputs[1] = _flat(vector, node, editor)
        else:
            if norm.op_type != "LayerNormalization" or (len(inputs) > 2 and not _is_all(inputs[2], 0.0)):
                continue
            inputs[2:] = [_flat(vector, node, editor)]
        attributes = {name: found.value for name, found in norm.attributes.items()}
        editor.replace(node.outputs[0], editor.op(node, norm.op_type, inputs, shape, **attributes))
        return True
    return False


def _flat(vector: ir.Value, node: ir.Node, editor: Editor) -> ir.Value:
    assert vector.const_value is not None
    sizes = vector.const_value.shape
    return vector if len(sizes) == 1 else editor.reshape(node, vector, (int(sizes[-1]),))


REWRITE = Rewrite("norm gain", (Key("Mul"), Key("Add")), _apply)
