"""All floating-point arithmetic is float32: casts between floats are dropped, casts to another float go to float32."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, is_float
from bitwright.frontend.normalise.rewrite import Key, Rewrite

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _apply(node: ir.Node, editor: Editor) -> bool:
    source = node.inputs[0]
    if source is None:
        return False
    if node.op_type == "CastLike":
        like = node.inputs[1]
        if like is None or not (is_float(source) and is_float(like)):
            return False
        editor.replace(node.outputs[0], source)
        return True
    target = ir.DataType(attribute(node, "to"))
    if is_float(source) and (target is ir.DataType.FLOAT or target in _NARROW):
        editor.replace(node.outputs[0], source)
        return True
    if target in _NARROW:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        node.outputs[0].dtype = ir.DataType.FLOAT
        return True
    return False


REWRITE = Rewrite("float cast", (Key("Cast"), Key("CastLike", since=15)), _apply)
