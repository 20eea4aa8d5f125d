"""Rotate what feed-forward layers read behind their activation function: h' = h R, with R^-1 in the weights behind.

Nothing linear stands before the activation function that R could fold into, so that the graph rotates on the fly.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.frontend.canonical import ELEMENTWISE
from bitwright.frontend.graph import Editor, producer
from bitwright.frontend.neighbours import change, constant_shape, readers
from bitwright.frontend.rotate.change import Change
from bitwright.frontend.rotate.node import rotate_behind
from bitwright.hadamard import Rotation
from bitwright.moments import RowMap

Doubles = npt.NDArray[np.float64]


def rotate_hidden(editor: Editor) -> Change:
    """Rotate every element-wise result that linear layers alone read."""
    found = [value for node in editor.graph for value in node.outputs if _is_hidden(value)]
    maps: dict[str, RowMap] = {}
    for value in found:
        weights = readers(value)
        rotation = Rotation.of(constant_shape(weights[0])[0])
        rotate_behind(editor, value, rotation)
        for weight in weights:
            change(weight, partial(_behind, rotation))
            maps[f"{weight.name}.T"] = rotation.apply
    return Change(len(found), maps)


def _behind(rotation: Rotation, weight: Doubles) -> Doubles:
    """R^T weight"""
    return rotation.apply(weight.T).T


def _is_hidden(value: ir.Value) -> bool:
    node = producer(value)
    return node is not None and not node.domain and node.op_type in ELEMENTWISE and bool(readers(value))
