"""Find where a decoder's lm_head begins, so that who needs the last position's logits computes no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_POINTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Tanh", "Identity", "Gather"})


def lm_head_input(output: ir.Value) -> str | None:
    """The hidden state [1, n, width] that the matrix product before ``output`` [1, n, V] reads, and nothing else does.

    Walks back over element-wise nodes whose other operands are constants (a bias, soft capping), and over logits that
    are put in another order. None where the graph ends otherwise.
    """
    value = output
    while (node := value.producer()) is not None and node.domain == "":
        varying = [v for v in node.inputs if v is not None and not _is_constant(v)]
        if len(varying) != 1 or (value is not output and _is_shared(value)):
            return None
        if node.op_type == "MatMul":
            head = node.inputs[0]
            return head.name if head is varying[0] and not _is_shared(head) else None
        if node.op_type not in _POINTWISE or (node.op_type == "Gather" and node.inputs[0] is not varying[0]):
            return None
        value = varying[0]
    return None


def _is_shared(value: ir.Value) -> bool:
    return value.is_graph_output() or len(list(value.uses())) != 1


def _is_constant(value: ir.Value) -> bool:
    """An initializer, or computed from initializers only (the transposed table of a tied lm_head)."""
    node = value.producer()
    if node is None:
        return bool(value.is_initializer())
    return all(_is_constant(v) for v in node.inputs if v is not None)
