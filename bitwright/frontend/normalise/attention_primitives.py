"""``softmax(q @ k^T * scale + mask) @ v`` in primitives becomes ``Attention`` on [1, heads, tokens, size].

Source of the formula: Vaswani et al. 2017. The scale may stand on q, on k, on both or on the scores, as a product or
a quotient; a soft cap ``c * tanh(scores / c)`` (Gemma 2) may stand before the mask; the mask may be added or selected
with ``Where``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bitwright.frontend.graph import BITWRIGHT_DOMAIN, Dims, Editor, attribute, dims, is_op, producer, scalar
from bitwright.frontend.mask import HIDDEN_BELOW
from bitwright.frontend.normalise.rewrite import Key, Rewrite


@dataclass(frozen=True)
class _Scores:
    q: ir.Value
    k_transposed: ir.Value
    scale: float
    softcap: float
    mask: ir.Value | None


def scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """(x, s) with ``value = x * s`` for a product of constants s."""
    factor = 1.0
    while True:
        node = producer(value)
        if node is None or node.op_type not in ("Mul", "Div") or node.domain:
            return value, factor
        number = scalar(node.inputs[1])
        if number is not None and number != 0:
            value, factor = node.inputs[0], factor * (number if node.op_type == "Mul" else 1 / number)
        elif node.op_type == "Mul" and (number := scalar(node.inputs[0])) is not None:
            value, factor = node.inputs[1], factor * number
        else:
            return value, factor


def _producer(value: ir.Value | None) -> ir.Node:
    node = producer(value)
    assert node is not None  # the caller has matched its op
    return node


def _unmasked(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """(scores, mask) of ``scores + mask``, ``where(mask, scores, -inf)`` or ``where(mask, -inf, scores)``."""
    node = producer(value)
    if node is not None and node.op_type == "Add":
        for scores, mask in (node.inputs, node.inputs[::-1]):
            if is_op(mask, "Mask", domain=BITWRIGHT_DOMAIN):
                return scores, mask
    if node is not None and node.op_type == "Where" and is_op(node.inputs[0], "Mask", domain=BITWRIGHT_DOMAIN):
        shown = attribute(_producer(node.inputs[0]), "form") == "visible"
        scores, hidden = (node.inputs[1], node.inputs[2]) if shown else (node.inputs[2], node.inputs[1])
        number = scalar(hidden)
        if number is not None and number <= HIDDEN_BELOW:
            return scores, node.inputs[0]
    return value, None


def _scores(value: ir.Value | None) -> _Scores | None:
    value, mask = _unmasked(value)
    value, factor = scaled(value)
    softcap = 0.0
    if is_op(value, "Tanh"):
        softcap = factor
        value, factor = scaled(_producer(value).inputs[0])
        factor *= softcap
    product = producer(value)
    if product is None or product.op_type != "MatMul":
        return None
    (q, on_q), (k, on_k) = scaled(product.inputs[0]), scaled(product.inputs[1])
    if q is None or k is None or len(dims(q) or ()) != 4 or len(dims(k) or ()) != 4:
        return None
    return _Scores(q, k, factor * on_q * on_k, softcap, mask)


def _weights(value: ir.Value | None) -> ir.Node | None:
    """The Softmax whose output ``value`` is, looking through a guard against rows that see nothing."""
    node = producer(value)
    if (
        node is not None
        and node.op_type == "Where"
        and scalar(node.inputs[1]) == 0.0
        and is_op(node.inputs[0], "IsNaN")
    ):
        node = producer(node.inputs[2])
    if node is None or node.op_type != "Softmax":
        return None
    return node if attribute(node, "axis", -1) in (-1, 3) else None


def _apply(node: ir.Node, editor: Editor) -> bool:
    softmax = _weights(node.inputs[0])
    scores = _scores(softmax.inputs[0]) if softmax is not None else None
    v = node.inputs[1]
    if scores is None or v is None or len(dims(v) or ()) != 4:
        return False
    k = editor.transpose(node, scores.k_transposed, (0, 1, 3, 2))
    shape: Dims | None = dims(node.outputs[0])
    attributes = {"scale": scores.scale, "softcap": scores.softcap, "is_causal": 0}
    mask = None if scores.mask is None else _visible(scores.mask, node, editor)
    attended = editor.op(node, "Attention", [scores.q, k, v, mask], shape, **attributes)
    editor.replace(node.outputs[0], attended)
    return True


def _visible(mask: ir.Value, node: ir.Node, editor: Editor) -> ir.Value:
    """The same mask in the form that ``Attention`` takes, True = visible."""
    found = _producer(mask)
    attributes = {"form": "visible", "causal": attribute(found, "causal"), "window": attribute(found, "window")}
    return editor.op(node, "Mask", [], dims(mask), domain=BITWRIGHT_DOMAIN, dtype=ir.DataType.BOOL, **attributes)


REWRITE = Rewrite("attention primitives", (Key("MatMul"),), _apply)
