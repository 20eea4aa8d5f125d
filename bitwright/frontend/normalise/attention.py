"""``Attention`` on [1, heads, tokens, size] becomes the canonical one on [1, tokens, heads*size].

The concatenation with the cache moves inside (inputs 4 and 5, outputs 1 and 2), K and V are no longer repeated for
groups of query heads, and the mask becomes ``is_causal``, or ``window`` of ``bitwright::Attention``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.graph import BITWRIGHT_DOMAIN, Dims, Editor, attribute, describe, dims, integers, producer
from bitwright.frontend.normalise.rewrite import Key, Rewrite
from bitwright.frontend.normalise.rotary import HEADS_FIRST


@dataclass(frozen=True)
class _Cached:
    """K or V [1, heads, tokens, size] of this call, and the cache it extends, if any."""

    new: ir.Value
    past: ir.Value | None
    present: ir.Value | None


def unrepeated(value: ir.Value) -> ir.Value:
    """K or V before each head was repeated for its group of query heads; ``value`` itself where it is not repeated."""
    shape = dims(value)
    node = producer(value)
    if node is None or shape is None or len(shape) != 4:
        return value
    if node.op_type == "Gather" and attribute(node, "axis", 0) == 1:
        return _ungathered(node, value)
    if node.op_type != "Reshape":
        return value
    repeat = producer(node.inputs[0])
    if repeat is None or repeat.op_type not in ("Expand", "Tile", "Concat"):
        return value
    source, grouped = repeat.inputs[0], dims(repeat.outputs[0])
    before = dims(source)
    if source is None or before is None or grouped is None or len(grouped) != 5 or before[2] != 1:
        return value
    if repeat.op_type == "Concat" and (any(v is not source for v in repeat.inputs) or attribute(repeat, "axis") != 2):
        return value
    if (before[1], *before[3:]) != (grouped[1], *grouped[3:]) or grouped[3:] != shape[2:]:
        return value
    inner = producer(source)
    if inner is not None and inner.op_type == "Reshape" and dims(inner.inputs[0]) == (1, before[1], *before[3:]):
        return inner.inputs[0] or value
    return value


def _ungathered(node: ir.Node, value: ir.Value) -> ir.Value:
    picked, source = integers(node.inputs[1]), node.inputs[0]
    heads = (dims(source) or (0, 0))[1]
    if source is None or picked is None or not isinstance(heads, int) or not heads or len(picked) % heads:
        return value
    group = len(picked) // heads
    return source if picked == [i // group for i in range(len(picked))] else value


def _cached(value: ir.Value) -> _Cached:
    value = unrepeated(value)
    node = producer(value)
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or attribute(node, "axis") not in (2, -2):
        return _Cached(value, None, None)
    past, new = node.inputs
    if past is None or new is None or not past.is_graph_input():
        return _Cached(value, None, None)
    return _Cached(new, past, value)


def _visibility(mask: ir.Value | None, node: ir.Node) -> tuple[bool, int]:
    """(causal, window) of the mask input and the attribute ``is_causal``."""
    if mask is None:
        return bool(attribute(node, "is_causal", 0)), 0
    source = producer(mask)
    if (
        source is None
        or source.op_type != "Mask"
        or source.domain != BITWRIGHT_DOMAIN
        or attribute(node, "is_causal", 0)
    ):
        raise UnsupportedError(
            "the mask of an attention is not understood",
            where=describe(node),
            limit="a mask computed from lengths and positions: causal, sliding window or all visible",
            remedy="export the model with attention_mask as an input",
        )
    if attribute(source, "form") == "hidden":
        raise UnsupportedError("a mask hides what Attention shows", where=describe(node), limit="True means visible")
    return bool(attribute(source, "causal")), int(attribute(source, "window"))


def _apply(node: ir.Node, editor: Editor) -> bool:
    q, k, v = node.inputs[:3]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    q_shape = dims(q)
    if q is None or k is None or v is None or q_shape is None or len(q_shape) != 4:
        return False
    if any(value is not None for value in node.inputs[4:]) or attribute(node, "qk_matmul_output_mode", 0):
        return False
    causal, window = _visibility(mask, node)
    keys, values = _cached(k), _cached(v)
    k_shape, v_shape = dims(keys.new), dims(values.new)
    if k_shape is None or v_shape is None or not _consistent(q_shape, k_shape, v_shape, keys, values):
        raise UnsupportedError(
            "the keys and values of an attention are not understood",
            where=describe(node),
            limit=f"q {q_shape}, k {k_shape}, v {v_shape}; K and V are the cache, then the new tokens",
            remedy="export the model with a plain key-value cache",
        )
    heads, kv_heads, head_dim, value_dim = (int(s) for s in (q_shape[1], k_shape[1], k_shape[3], v_shape[3]))
    y_shape: Dims = (1, "n", heads * value_dim)
    past: list[ir.Value | None] = [keys.past, values.past]
    shapes = [y_shape]
    if keys.past is not None:
        shapes += [(1, kv_heads, "n+p", head_dim), (1, kv_heads, "n+p", value_dim)]
    scale = attribute(node, "scale")
    attributes = {
        "q_num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": 1 / math.sqrt(head_dim) if scale is None else scale,
        "softcap": attribute(node, "softcap", 0.0),
        "is_causal": int(causal),
    }
    if window:
        attributes["window"] = window
    flat = [_tokens_first(editor, node, x) for x in (q, keys.new, values.new)]
    inputs = [*flat, None, *past] if keys.past is not None else flat
    domain = BITWRIGHT_DOMAIN if window else ""
    outputs = editor.node(node, "Attention", inputs, shapes, domain=domain, **attributes)
    for present, output in zip((keys.present, values.present), outputs[1:], strict=False):
        assert present is not None
        editor.replace(present, output)
    split = editor.reshape(node, outputs[0], (1, "n", heads, value_dim))
    editor.replace(node.outputs[0], editor.transpose(node, split, HEADS_FIRST))
    return True


def _consistent(q: Dims, k: Dims, v: Dims, keys: _Cached, values: _Cached) -> bool:
    if len(k) != 4 or len(v) != 4 or any(not isinstance(s, int) for s in (q[1], q[3], k[1], k[3], v[1], v[3])):
        return False
    tokens_agree = q[2] == k[2] == v[2] == "n"
    heads_agree = k[1] == v[1] and k[1] != 0 and int(q[1]) % int(k[1]) == 0 and q[3] == k[3]
    return tokens_agree and heads_agree and (keys.past is None) == (values.past is None)


def _tokens_first(editor: Editor, node: ir.Node, value: ir.Value) -> ir.Value:
    """[1, heads, n, size] -> [1, n, heads*size]."""
    shape = dims(value)
    assert shape is not None
    moved = editor.transpose(node, value, HEADS_FIRST)
    return editor.reshape(node, moved, (1, "n", int(shape[1]) * int(shape[3])))


REWRITE = Rewrite("attention", (Key("Attention", since=23),), _apply)
