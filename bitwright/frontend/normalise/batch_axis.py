"""A batch axis of size 1 that is put in front of a transpose's result is put in front of its input instead.

torch's exporter spells batched products of 4-D tensors with 3-D transposes: ``Reshape(Transpose(x [H, t, D]), [1, H, D,
t])``. Moved, the reshape meets the one that dropped the axis, and both vanish.
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor, dims, is_op, producer
from bitwright.frontend.normalise.rewrite import Key, Rewrite
from bitwright.frontend.normalise.transposing import permutation


def _apply(node: ir.Node, editor: Editor) -> bool:
    moved, target = node.inputs[0], dims(node.outputs[0])
    transpose = producer(moved)
    if moved is None or transpose is None or not is_op(moved, "Transpose") or target != (1, *(dims(moved) or ())):
        return False
    source, perm = transpose.inputs[0], permutation(transpose)
    shape = dims(source)
    if source is None or perm is None or shape is None or sum(not isinstance(d, int) for d in shape) > 1:
        return False
    batched = editor.reshape(node, source, (1, *shape))
    editor.replace(node.outputs[0], editor.transpose(node, batched, (0, *(axis + 1 for axis in perm))))
    return True


REWRITE = Rewrite("batch axis", (Key("Reshape"),), _apply)
