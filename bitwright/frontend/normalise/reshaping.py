"""``Squeeze``, ``Unsqueeze`` and ``Flatten`` are spelled ``Reshape``; reshapes of reshapes collapse; those that
change nothing vanish.
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor, dims, is_op
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _apply(node: ir.Node, editor: Editor) -> bool:
    source, target = node.inputs[0], dims(node.outputs[0])
    if source is None or target is None or _varying(target) > 1 or source.const_value is not None:
        return False
    if dims(source) == target:
        editor.replace(node.outputs[0], source)
        return True
    if is_op(source, "Reshape"):
        earlier = source.producer()
        assert earlier is not None and earlier.inputs[0] is not None
        editor.replace(node.outputs[0], editor.reshape(node, earlier.inputs[0], target))
        return True
    if node.op_type == "Reshape":
        return False
    editor.replace(node.outputs[0], editor.reshape(node, source, target))
    return True


def _varying(shape: tuple[int | str, ...]) -> int:
    return sum(not isinstance(d, int) for d in shape)


REWRITE = Rewrite("reshaping", (Key("Reshape"), Key("Squeeze"), Key("Unsqueeze"), Key("Flatten")), _apply)
