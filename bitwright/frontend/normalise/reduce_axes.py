"""``ReduceMean`` before opset 18 names its axes in an attribute; since then in an input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, dims
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _apply(node: ir.Node, editor: Editor) -> bool:
    axes = attribute(node, "axes")
    if axes is None:
        return False
    operand = editor.initializer(np.array(list(axes), np.int64), "axes")
    keep = attribute(node, "keepdims", 1)
    mean = editor.op(node, node.op_type, [node.inputs[0], operand], dims(node.outputs[0]), keepdims=keep)
    editor.replace(node.outputs[0], mean)
    return True


REWRITE = Rewrite("reduce axes", (Key("ReduceMean", until=17),), _apply)
