"""Arithmetic that changes nothing: adding 0, multiplying or dividing by 1, a concatenation of one operand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, constant, dims
from bitwright.frontend.normalise.rewrite import Key, Rewrite

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}


def _survivor(node: ir.Node) -> ir.Value | None:
    """The operand that the node's output equals, if any."""
    if node.op_type == "Concat":
        kept = [v for v in node.inputs if v is not None and 0 not in (dims(v) or ())]
        return kept[0] if len(kept) == 1 else None
    left, right = node.inputs[:2]
    sides = [(left, right)] + ([(right, left)] if node.op_type in ("Add", "Mul") else [])
    for kept, other in sides:
        content = constant(other)
        if content is not None and content.dtype.kind == "f" and bool(np.all(content == _NEUTRAL[node.op_type])):
            return kept
    return None


def _apply(node: ir.Node, editor: Editor) -> bool:
    kept = _survivor(node)
    if kept is None or dims(kept) != dims(node.outputs[0]) or dims(kept) is None:
        return False
    editor.replace(node.outputs[0], kept)
    return True


REWRITE = Rewrite("neutral", (*(Key(op) for op in _NEUTRAL), Key("Concat")), _apply)
