"""``SequenceAt(SplitToSequence(x, sizes), i)``, torch's ``split``, becomes one ``Split``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, dims, integers, scalar
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _sizes(node: ir.Node, axis: int) -> list[int] | None:
    """Sizes of the parts: given as a list, or as one size that divides the axis (the last part may be smaller)."""
    given = integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        return None
    rank_one = dims(node.inputs[1])
    if rank_one is None or len(rank_one) == 1:
        return given
    whole = dims(node.inputs[0])
    if whole is None or not isinstance(whole[axis], int) or given[0] <= 0:
        return None
    length = int(whole[axis])
    return [min(given[0], length - start) for start in range(0, length, given[0])]


def _apply(node: ir.Node, editor: Editor) -> bool:
    axis = attribute(node, "axis", 0)
    sizes = _sizes(node, axis)
    readers = [use.node for use in node.outputs[0].uses()]
    if sizes is None or attribute(node, "keepdims", 1) != 1 or any(r.op_type != "SequenceAt" for r in readers):
        return False
    positions = [scalar(r.inputs[1]) for r in readers]
    if any(p is None or not -len(sizes) <= p < len(sizes) for p in positions):
        return False
    source = dims(node.inputs[0])
    shapes = [None if source is None else (*source[:axis], size, *source[axis:][1:]) for size in sizes]
    split = editor.initializer(np.array(sizes, np.int64), "split")
    parts = editor.node(node, "Split", [node.inputs[0], split], shapes, axis=axis)
    for reader, position in zip(readers, positions, strict=True):
        assert position is not None
        editor.replace(reader.outputs[0], parts[int(position)])
    return True


REWRITE = Rewrite("sequence", (Key("SplitToSequence"),), _apply)
