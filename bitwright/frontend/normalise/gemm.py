"""``Gemm`` becomes ``MatMul`` and ``Add``; scalars and transposes of the weight move into the weight."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, dims
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _apply(node: ir.Node, editor: Editor) -> bool:
    x, weight = node.inputs[:2]
    shape = dims(node.outputs[0])
    if x is None or weight is None or shape is None or attribute(node, "transA", 0):
        return False
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return False
    if attribute(node, "transB", 0):
        weight = editor.transpose(node, weight, (1, 0))
    result = editor.op(node, "MatMul", [x, weight], shape)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = editor.op(node, "Add", [result, bias], shape)
    editor.replace(node.outputs[0], result)
    return True


REWRITE = Rewrite("gemm", (Key("Gemm"),), _apply)
