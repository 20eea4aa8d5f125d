"""``Constant`` nodes become initializers; half and double precision numbers become float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor
from bitwright.frontend.normalise.rewrite import Key, Rewrite


def _content(node: ir.Node) -> ir.TensorProtocol | None:
    for name, found in node.attributes.items():
        if name == "value":
            tensor: ir.TensorProtocol = found.value
            return tensor
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.array(found.value, np.int64))
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.array(found.value, np.float32))
    return None


def _apply(node: ir.Node, editor: Editor) -> bool:
    tensor = _content(node)
    if tensor is None:
        return False
    editor.replace(node.outputs[0], editor.tensor(tensor, editor.fresh("constant")))
    return True


REWRITE = Rewrite("constants", (Key("Constant"),), _apply)
