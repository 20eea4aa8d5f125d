"""Linear layers on a flattened batch, [n, K], are done on [1, n, K]: reshapes that only drop the batch move behind."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor, dims, is_op
from bitwright.frontend.normalise.rewrite import Key, Rewrite

_ONE_OPERAND = ("MatMul", "Gelu", "Tanh", "Sigmoid", "Erf", "Relu", "Neg", "Sqrt", "Exp", "Softmax")


def _apply(node: ir.Node, editor: Editor) -> bool:
    shape = dims(node.outputs[0])
    if shape is None or len(shape) != 2 or shape[0] != "n":
        return False
    restored: list[ir.Value | None] = []
    found = False
    for index, value in enumerate(node.inputs):
        flat = dims(value)
        if value is not None and flat is not None and len(flat) == 2 and flat[0] == "n":
            if not is_op(value, "Reshape", "MatMul", "Add", "Mul", *_ONE_OPERAND):
                return False
            restored.append(editor.reshape(node, value, (1, *flat)))
            found = True
        elif index == 0 and node.op_type == "MatMul":
            return False
        else:
            restored.append(value)
    if not found:
        return False
    attributes = {name: a.value for name, a in node.attributes.items() if not (name == "axis" and a.value == 1)}
    result = editor.op(node, node.op_type, restored, (1, *shape), **attributes)
    editor.replace(node.outputs[0], editor.reshape(node, result, shape))
    return True


REWRITE = Rewrite("token rows", tuple(Key(op) for op in ("Add", "Sub", "Mul", "Div", "Pow", *_ONE_OPERAND)), _apply)
