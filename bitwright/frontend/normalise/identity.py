"""Ops that do nothing at inference are dropped."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _apply(node: ir.Node, editor: Editor) -> bool:
    source = node.inputs[0]
    if source is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    if source.is_graph_input() and node.outputs[0].is_graph_output():
        return False  # an output must stay a value of its own
    editor.replace(node.outputs[0], source)
    return True


REWRITE = Rewrite("identity", (Key("Identity"), Key("Dropout")), _apply)
