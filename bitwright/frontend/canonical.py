"""What canonical ONNX is, as a check: ``validate`` accepts a graph or names the node that does not belong.

Everything downstream may rely on what is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.graph import BITWRIGHT_DOMAIN, attribute, describe, dims, integers, token_ids

ELEMENTWISE = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Sqrt",
    "Pow",
    "Tanh",
    "Sigmoid",
    "Erf",
    "Exp",
    "Relu",
    "Gelu",
    "Cast",
    "Where",
}


@dataclass(frozen=True)
class _Rule:
    """``holds`` decides whether a node of this op is canonical; ``limit`` says what it asks."""

    holds: Callable[[ir.Node], bool]
    limit: str


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _is_choice(node: ir.Node) -> bool:
    """Rows of a constant table by an input, or by another table of the input's; or a row's elements put in order."""
    source, indices = node.inputs
    axis, rank = attribute(node, "axis", 0), len(dims(source) or ())
    if _is_constant(indices):
        return axis in (-1, rank - 1) and rank == 3 and len(dims(indices) or ()) == 1
    ids = token_ids(indices)
    return axis == 0 and _is_constant(source) and ids is not None and ids.is_graph_input()


def _is_linear(node: ir.Node) -> bool:
    weight = node.inputs[1]
    rank = len(dims(weight) or ())
    return rank == 2 and (_is_constant(weight) or _is_transposed_table(weight)) and len(dims(node.inputs[0]) or ()) == 3


def _is_transposed_table(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "Transpose" and _is_constant(node.inputs[0])


def _is_norm(node: ir.Node) -> bool:
    rank = len(dims(node.inputs[0]) or ())
    return attribute(node, "axis", -1) in (-1, rank - 1) and all(
        _is_constant(v) for v in node.inputs[1:] if v is not None
    )


def _cuts_last_axis(node: ir.Node) -> bool:
    rank = len(dims(node.outputs[0]) or ())
    if node.op_type == "Slice":
        axes, steps = integers(node.inputs[3]), integers(node.inputs[4])
        return axes == [rank - 1] and steps == [1] and all(_is_constant(v) for v in node.inputs[1:])
    return attribute(node, "axis", 0) in (-1, rank - 1) and all(
        _is_constant(v) for v in node.inputs[1:] if node.op_type == "Split"
    )


def _is_static_reshape(node: ir.Node) -> bool:
    target = integers(node.inputs[1])
    return target is not None and target.count(-1) <= 1 and 0 not in target


def _is_rotary(node: ir.Node) -> bool:
    positions = node.inputs[3] if len(node.inputs) > 3 else None
    return (
        len(dims(node.inputs[0]) or ()) == 3
        and all(_is_constant(v) for v in node.inputs[1:3])
        and positions is not None
        and positions.is_graph_input()
        and attribute(node, "num_heads", 0) > 0
    )


def _is_attention(node: ir.Node) -> bool:
    inputs = list(node.inputs) + [None] * (6 - len(node.inputs))
    past = inputs[4:6]
    paired = all(v is None for v in past) or all(v is not None and v.is_graph_input() for v in past)
    flat = all(len(dims(v) or ()) == 3 for v in inputs[:3])
    heads = attribute(node, "q_num_heads", 0) > 0 and attribute(node, "kv_num_heads", 0) > 0
    window = attribute(node, "window", 0) > 0 if node.domain == BITWRIGHT_DOMAIN else attribute(node, "window") is None
    return paired and flat and heads and window and inputs[3] is None and attribute(node, "scale") is not None


def _is_rotation(node: ir.Node) -> bool:
    width = (dims(node.inputs[0]) or (0,))[-1]
    return width == prod(int(attribute(node, name, 0)) for name in ("blocks", "order", "power"))


_ATTENTION = _Rule(_is_attention, "3-D q, k and v, no mask, cache from the graph's inputs, head counts and scale given")
RULES: dict[tuple[str, str], _Rule] = {
    ("", "Gather"): _Rule(
        _is_choice, "rows of a constant table picked by an input, axis 0, or all elements of rows in a constant order"
    ),
    ("", "MatMul"): _Rule(_is_linear, "[1, n, in] times a weight [in, out]"),
    ("", "RMSNormalization"): _Rule(_is_norm, "over the last axis, with constant gain"),
    ("", "LayerNormalization"): _Rule(_is_norm, "over the last axis, with constant gain and bias"),
    ("", "Softmax"): _Rule(lambda node: True, ""),
    ("", "Split"): _Rule(_cuts_last_axis, "along the last axis, with constant sizes"),
    ("", "Slice"): _Rule(_cuts_last_axis, "along the last axis, with constant bounds and step 1"),
    ("", "Concat"): _Rule(_cuts_last_axis, "along the last axis"),
    ("", "Reshape"): _Rule(_is_static_reshape, "to a constant shape with at most one -1"),
    ("", "Transpose"): _Rule(lambda node: attribute(node, "perm") is not None, "with a permutation"),
    ("", "RotaryEmbedding"): _Rule(
        _is_rotary, "3-D, constant tables, positions from the graph's input, num_heads given"
    ),
    ("", "Attention"): _ATTENTION,
    (BITWRIGHT_DOMAIN, "Attention"): _ATTENTION,
    (BITWRIGHT_DOMAIN, "Rotate"): _Rule(_is_rotation, "of a width that blocks * order * power is"),
    **{("", op): _Rule(lambda node: True, "") for op in ELEMENTWISE},
}


def validate(model: ir.Model) -> None:
    """Check that every node is canonical.

    Raises:
        UnsupportedError: naming the first node that is not, its op and domain.
    """
    for node in model.graph:
        rule = RULES.get((node.domain, node.op_type))
        if rule is None:
            raise UnsupportedError(
                f"op {node.domain or 'ai.onnx'}::{node.op_type} is not understood here",
                where=describe(node),
                limit="the canonical ops; no rewrite in bitwright/frontend/normalise matched this one",
                remedy="export the model with torch.onnx.export(dynamo=True, opset_version=23), or add a rewrite",
            )
        if not rule.holds(node):
            raise UnsupportedError(
                f"this use of {node.domain or 'ai.onnx'}::{node.op_type} is not understood",
                where=f"{describe(node)} on {[dims(v) for v in node.inputs if v is not None]}",
                limit=f"canonical: {rule.limit}",
                remedy="export the model with torch.onnx.export(dynamo=True, opset_version=23), or add a rewrite",
            )
        for value in node.outputs:
            shape = dims(value)
            if shape is None or "?" in shape:
                raise UnsupportedError("the shape of a value is unknown", where=f"'{value.name}' of {describe(node)}")
