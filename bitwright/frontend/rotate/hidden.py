"""Rotate what feed-forward layers read behind their activation function: h' = h R, with R^-1 in the weights behind.

Nothing linear stands before the activation function that R could fold into, so that the graph rotates on the fly.
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.canonical import ELEMENTWISE
from bitwright.frontend.graph import Editor, producer
from bitwright.frontend.neighbours import change, constant_shape, readers
from bitwright.frontend.rotate.node import rotate_behind
from bitwright.hadamard import Rotation


def rotate_hidden(editor: Editor) -> int:
    """Rotate every element-wise result that linear layers alone read; returns how many there were."""
    found = [value for node in editor.graph for value in node.outputs if _is_hidden(value)]
    for value in found:
        weights = readers(value)
        rotation = Rotation.of(constant_shape(weights[0])[0])
        rotate_behind(editor, value, rotation)
        for weight in weights:
            change(weight, lambda w, r=rotation: r.apply(w.T).T)  # type: ignore[misc]  # R^T w; a default binds it now
    return len(found)


def _is_hidden(value: ir.Value) -> bool:
    node = producer(value)
    return node is not None and not node.domain and node.op_type in ELEMENTWISE and bool(readers(value))
