"""A transpose, reshape or slice of a weight becomes a weight, computed when it is read.

The transpose of an embedding table that is also looked up stays a node: the table is stored once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, integers
from bitwright.frontend.normalise.rewrite import Key, Rewrite
from bitwright.frontend.normalise.transposing import permutation


def _change(node: ir.Node) -> Callable[[np.ndarray], np.ndarray] | None:
    if node.op_type == "Transpose":
        perm = permutation(node)
        return None if perm is None else lambda x: x.transpose(perm)
    if node.op_type == "Reshape":
        shape = integers(node.inputs[1])
        return None if shape is None else lambda x: x.reshape(shape)
    return None


def _apply(node: ir.Node, editor: Editor) -> bool:
    source = node.inputs[0]
    if source is None or source.const_value is None:
        return False
    if any(use.node.op_type == "Gather" and use.idx == 0 for use in source.uses()):
        return False
    change = _change(node)
    if change is None:
        return False
    tensor = source.const_value
    shape = change(np.broadcast_to(np.zeros((), np.int8), tuple(int(d) for d in tensor.shape))).shape
    lazy = ir.LazyTensor(
        lambda: ir.tensor(change(np.asarray(tensor.numpy()))),
        dtype=tensor.dtype,
        shape=ir.Shape(shape),
        name=source.name,
    )
    folded = editor.tensor(lazy, editor.fresh(str(source.name)))
    editor.replace(node.outputs[0], folded)
    editor.graph.remove(node, safe=True)
    if not source.uses():  # the only reader is folded away: the weight keeps its name
        name = str(source.name)
        del editor.graph.initializers[name]
        folded.name = name
    return True


REWRITE = Rewrite("fold weights", (Key("Transpose"), Key("Reshape")), _apply)
