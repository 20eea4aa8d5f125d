"""The node that rotates on the fly: ``Rotate`` of the domain ``bitwright``.

y = x R, or x R^T if ``transposed``; x float32 [1, n, width], R as ``blocks``, ``order`` and ``power`` say
(``bitwright.hadamard``).
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.graph import BITWRIGHT_DOMAIN, Editor, dims
from bitwright.hadamard import Rotation


def rotate(
    editor: Editor, before: ir.Node, value: ir.Value, rotation: Rotation, *, transposed: bool = False
) -> ir.Value:
    """Insert the node and return its result; nothing reads it yet."""
    return editor.op(
        before,
        "Rotate",
        [value],
        dims(value),
        domain=BITWRIGHT_DOMAIN,
        blocks=rotation.blocks,
        order=rotation.order,
        power=rotation.power,
        transposed=int(transposed),
    )


def rotate_behind(editor: Editor, value: ir.Value, rotation: Rotation) -> None:
    """Let every reader of ``value`` read it rotated."""
    uses = list(value.uses())
    first = next(node for node in editor.graph if any(use.node is node for use in uses))
    turned = rotate(editor, first, value, rotation)
    for use in uses:
        use.node.replace_input_with(use.idx, turned)
