"""Operands of size 0 are dropped from a concatenation (the part of a head that a full rotary embedding passes
through).
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, dims
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _apply(node: ir.Node, editor: Editor) -> bool:
    kept = [v for v in node.inputs if v is not None and 0 not in (dims(v) or ())]
    if len(kept) == len(node.inputs) or len(kept) < 2:
        return False
    axis = attribute(node, "axis")
    editor.replace(node.outputs[0], editor.op(node, "Concat", kept, dims(node.outputs[0]), axis=axis))
    return True


REWRITE = Rewrite("empty operands", (Key("Concat"),), _apply)
