"""Transposes of transposes collapse, those that move nothing vanish, and normalisations over the last axis move in
front of them.
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, dims, is_op
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def permutation(node: ir.Node) -> list[int] | None:
    """The permutation of a ``Transpose``; its default reverses the axes."""
    shape = dims(node.inputs[0])
    given = attribute(node, "perm")
    if given is not None:
        return list(given)
    return None if shape is None else list(range(len(shape)))[::-1]


def _transpose(node: ir.Node, editor: Editor) -> bool:
    perm, source = permutation(node), node.inputs[0]
    if perm is None or source is None:
        return False
    if perm == sorted(perm):
        editor.replace(node.outputs[0], source)
        return True
    if is_op(source, "Transpose"):
        inner = source.producer()
        assert inner is not None and inner.inputs[0] is not None
        first = permutation(inner)
        if first is None:
            return False
        editor.replace(node.outputs[0], editor.transpose(node, inner.inputs[0], [first[i] for i in perm]))
        return True
    shape = dims(source)
    if shape is None or dims(node.outputs[0]) is None:
        return False
    moved = [axis for axis in perm if shape[axis] != 1]
    if moved == sorted(moved):  # only axes of size 1 move
        editor.replace(node.outputs[0], editor.reshape(node, source, dims(node.outputs[0]) or ()))
        return True
    return False


def _normalisation(node: ir.Node, editor: Editor) -> bool:
    source = node.inputs[0]
    if source is None or not is_op(source, "Transpose"):
        return False
    inner = source.producer()
    assert inner is not None and inner.inputs[0] is not None
    perm = permutation(inner)
    shape = dims(inner.inputs[0])
    if perm is None or shape is None or perm[-1] != len(perm) - 1:
        return False
    attributes = {name: found.value for name, found in node.attributes.items()}
    normed = editor.op(node, node.op_type, [inner.inputs[0], *node.inputs[1:]], shape, **attributes)
    editor.replace(node.outputs[0], editor.transpose(node, normed, perm))
    return True


def _apply(node: ir.Node, editor: Editor) -> bool:
    return _transpose(node, editor) if node.op_type == "Transpose" else _normalisation(node, editor)


REWRITE = Rewrite(
    "transposing", (Key("Transpose"), Key("RMSNormalization", since=23), Key("LayerNormalization", since=17)), _apply
)
