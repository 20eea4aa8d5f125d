"""Canonical graphs built by hand: a decoder with every structural variation import and passes must cope with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.frontend.model import CacheShape, ImportedModel


@dataclass(frozen=True)
class Shape:
    """Sizes and variations of a random decoder."""

    layers: int = 2
    width: int = 96
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 32
    hidden: int = 160
    vocab: int = 101
    context: int = 96
    tied: bool = True
    bias: bool = False
    window: int = 0
    seed: int = 0


class Builder:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.random = np.random.default_rng(shape.seed)
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        self.initializers.append(value)
        return value

    def weights(self, name: str, inputs: int, outputs: int) -> ir.Value:
        scale = inputs**-0.5
        return self.constant(name, (self.random.standard_normal((inputs, outputs)) * scale).astype(np.float32))

    def node(self, op: str, inputs: list[ir.Value | None], *, domain: str = "", outputs: int = 1, **attrs: Any) -> Any:
        attributes = ir.convenience.convert_attributes(attrs)
        node = ir.Node(domain, op, inputs, attributes, num_outputs=outputs, name=f"{op}_{len(self.nodes)}")
        for i, value in enumerate(node.outputs):
            value.name = f"{node.name}_{i}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def linear(self, name: str, x: ir.Value, inputs: int, outputs: int) -> ir.Value:
        y = self.node("MatMul", [x, self.weights(f"{name}.weight", inputs, outputs)])
        if not self.shape.bias:
            return y
        bias = (self.random.standard_normal(outputs) * 0.1).astype(np.float32)
        return self.node("Add", [y, self.constant(f"{name}.bias", bias)])

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        gain = (1 + 0.1 * self.random.standard_normal(self.shape.width)).astype(np.float32)
        return self.node("RMSNormalization", [x, self.constant(name, gain)], axis=-1, epsilon=1e-5)


def graph_input(name: str, dtype: ir.DataType, shape: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _layer(
    b: Builder, i: int, x: ir.Value, positions: ir.Value, tables: list[ir.Value], inputs: list[ir.Value]
) -> tuple[ir.Value, list[ir.Value]]:
    s = b.shape
    q_width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
    normed = b.norm(f"layers.{i}.norm1", x)
    q, k, v = (
        b.linear(f"layers.{i}.{n}", normed, s.width, w) for n, w in (("q", q_width), ("k", kv_width), ("v", kv_width))
    )
    q = b.node("RotaryEmbedding", [q, *tables, positions], num_heads=s.heads)
    k = b.node("RotaryEmbedding", [k, *tables, positions], num_heads=s.kv_heads)
    past = [
        graph_input(f"past.{i}.{name}", ir.DataType.FLOAT, [1, s.kv_heads, "p", s.head_dim])
        for name in ("key", "value")
    ]
    inputs.extend(past)
    windowed = s.window and i % 2 == 0
    extra = {"window": s.window} if windowed else {}
    attended, *present = b.node(
        "Attention",
        [q, k, v, None, *past],
        domain="bitwright" if windowed else "",
        outputs=3,
        q_num_heads=s.heads,
        kv_num_heads=s.kv_heads,
        scale=float(s.head_dim**-0.5),
        is_causal=1,
        **extra,
    )
    for value, name in zip(present, ("key", "value"), strict=True):
        value.name = f"present.{i}.{name}"
    x = b.node("Add", [x, b.linear(f"layers.{i}.o", attended, q_width, s.width)])
    normed = b.norm(f"layers.{i}.norm2", x)
    gate = b.linear(f"layers.{i}.gate", normed, s.width, s.hidden)
    up = b.linear(f"layers.{i}.up", normed, s.width, s.hidden)
    activated = b.node("Mul", [gate, b.node("Sigmoid", [gate])])
    down = b.linear(f"layers.{i}.down", b.node("Mul", [activated, up]), s.hidden, s.width)
    return b.node("Add", [x, down]), present


def _rotary_tables(b: Builder) -> list[ir.Value]:
    half = b.shape.head_dim // 2
    angles = np.arange(b.shape.context)[:, None] * 10000.0 ** (-np.arange(half) / half)
    return [b.constant(n, f(angles).astype(np.float32)) for n, f in (("cos", np.cos), ("sin", np.sin))]


def decoder(shape: Shape | None = None) -> ImportedModel:
    """A random Llama-like decoder in canonical form."""
    s = shape or Shape()
    b = Builder(s)
    ids = graph_input("input_ids", ir.DataType.INT64, [1, "n"])
    positions = graph_input("position_ids", ir.DataType.INT64, [1, "n"])
    inputs, presents = [ids, positions], []
    table = b.constant("table", b.random.standard_normal((s.vocab, s.width)).astype(np.float32))
    tables = _rotary_tables(b)
    x = b.node("Gather", [table, ids], axis=0)
    for i in range(s.layers):
        x, present = _layer(b, i, x, positions, tables, inputs)
        presents.extend(present)
    head = b.node("Transpose", [table], perm=[1, 0]) if s.tied else b.weights("head", s.width, s.vocab)
    logits = b.node("MatMul", [b.norm("norm", x), head])
    logits.name = "logits"
    logits.dtype, logits.shape = ir.DataType.FLOAT, ir.Shape([1, "n", s.vocab])
    graph = ir.Graph(
        inputs,
        [logits, *presents],
        nodes=b.nodes,
        initializers=b.initializers,
        opset_imports={"": 23, "bitwright": 1},
        name="decoder",
    )
    digest = hashlib.sha256(repr(s).encode()).hexdigest()
    cache = CacheShape(s.kv_heads, s.head_dim, s.head_dim)
    return ImportedModel(
        ir.Model(graph, ir_version=10),
        "decoder",
        "random decoder",
        s.context,
        s.vocab,
        (cache,) * s.layers,
        None,
        None,
        digest,
        {"eos_token_id": [1]},
    )
