"""Small canonical graphs with the structures that ordinary decoders lack: where fusion and sharing go wrong first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.frontend.model import CacheShape, ImportedModel
from tests.canonical_model import Builder, Shape, graph_input

WIDTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB, CONTEXT = 96, 3, 1, 32, 160, 101, 96


class Unusual(Builder):
    """One graph under construction: ``x`` is the residual stream; ``finish`` makes the model."""

    def __init__(self, *, encoder: bool = False, context: int = CONTEXT) -> None:
        super().__init__(Shape(context=context))
        self.encoder = encoder
        self.ids, self.positions, self.types = (
            graph_input(name, ir.DataType.INT64, [1, "n"]) for name in ("input_ids", "position_ids", "token_type_ids")
        )
        self.inputs, self.presents = [self.ids, self.positions], []
        self.caches: list[CacheShape] = []
        self.table = self.random_constant("table", VOCAB, WIDTH)
        self.x = self.node("Gather", [self.table, self.ids], axis=0)

    def random_constant(self, name: str, *shape: int, scale: float = 1.0) -> ir.Value:
        return self.constant(name, (self.random.standard_normal(shape) * scale).astype(np.float32))

    def project(self, name: str, x: ir.Value, inputs: int, outputs: int, *, bias: bool = False) -> ir.Value:
        y = self.node("MatMul", [x, self.weights(f"{name}.weight", inputs, outputs)])
        return self.node("Add", [y, self.random_constant(f"{name}.bias", outputs, scale=0.1)]) if bias else y

    def layer_norm(self, name: str, x: ir.Value) -> ir.Value:
        gain, bias = self.random_constant(f"{name}.gain", WIDTH), self.random_constant(f"{name}.bias", WIDTH)
        return self.node("LayerNormalization", [x, gain, bias], axis=-1, epsilon=1e-5)

    def silu(self, x: ir.Value) -> ir.Value:
        return self.node("Mul", [x, self.node("Sigmoid", [x])])

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, *, value_dim: int = HEAD_DIM, **extra: Any) -> ir.Value:
        """Causal attention with a cache, or an encoder's without; 3 query heads of 32 on 1 key/value head."""
        layer, heads = len(self.caches), {"q_num_heads": HEADS, "kv_num_heads": KV_HEADS}
        scale = float(HEAD_DIM**-0.5)
        if self.encoder:
            return self.node("Attention", [q, k, v], is_causal=0, scale=scale, **heads, **extra)
        past = [
            graph_input(f"past.{layer}.{name}", ir.DataType.FLOAT, [1, KV_HEADS, "p", size])
            for name, size in (("key", HEAD_DIM), ("value", value_dim))
        ]
        self.inputs.extend(past)
        y, *present = self.node(
            "Attention", [q, k, v, None, *past], outputs=3, is_causal=1, scale=scale, **heads, **extra
        )
        for value, name in zip(present, ("key", "value"), strict=True):
            value.name = f"present.{layer}.{name}"
        self.presents.extend(present)
        self.caches.append(CacheShape(KV_HEADS, HEAD_DIM, value_dim))
        return y

    def attention_layer(self, name: str, normed: ir.Value) -> ir.Value:
        sizes = (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM))
        q, k, v = (self.project(f"{name}.{letter}", normed, WIDTH, size) for letter, size in sizes)
        return self.project(f"{name}.o", self.attend(q, k, v), HEADS * HEAD_DIM, WIDTH)

    def mlp(self, name: str, normed: ir.Value) -> ir.Value:
        gate, up = (self.project(f"{name}.{part}", normed, WIDTH, HIDDEN) for part in ("gate", "up"))
        return self.project(f"{name}.down", self.node("Mul", [self.silu(gate), up]), HIDDEN, WIDTH)

    def add(self, *terms: ir.Value) -> None:
        """x = x + terms."""
        for term in terms:
            self.x = self.node("Add", [self.x, term])

    def finish(self) -> ImportedModel:
        """A decoder with a tied head behind a norm, or an encoder that returns the stream."""
        if self.encoder:
            result, last = self.x, ("hidden", WIDTH)
        else:
            head = self.node("Transpose", [self.table], perm=[1, 0])
            result, last = self.node("MatMul", [self.norm("norm", self.x), head]), ("logits", VOCAB)
        result.name, result.dtype, result.shape = last[0], ir.DataType.FLOAT, ir.Shape([1, "n", last[1]])
        graph = ir.Graph(
            self.inputs,
            [result, *self.presents],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": 23, "bitwright": 1},
            name="unusual",
        )
        return ImportedModel(
            ir.Model(graph, ir_version=10),
            "encoder" if self.encoder else "decoder",
            "unusual",
            self.shape.context,
            VOCAB,
            tuple(self.caches),
            None,
            None,
            hashlib.sha256(repr([n.op_type for n in self.nodes]).encode()).hexdigest(),
            {"eos_token_id": [1]},
        )


def parallel_blocks() -> ImportedModel:
    """Attention and MLP read one norm (GPT-J, Phi-2): in prefill the last MLP needs one row, the last Q/K/V all."""
    b = Unusual()
    for i in range(2):
        normed = b.norm(f"{i}.norm", b.x)
        b.add(b.attention_layer(f"{i}", normed), b.mlp(f"{i}", normed))
    return b.finish()


def shared_weights() -> ImportedModel:
    """The second layer's keys come from the first layer's matrix (not its queries), its gate is shared as well."""
    b = Unusual()
    shared = b.weights("shared.k", WIDTH, HEAD_DIM)
    for i in range(2):
        normed = b.norm(f"{i}.norm", b.x)
        q = b.project(f"{i}.q", normed, WIDTH, HEADS * HEAD_DIM)
        k = b.node("MatMul", [normed, shared])
        v = b.project(f"{i}.v", normed, WIDTH, HEAD_DIM)
        b.add(b.project(f"{i}.o", b.attend(q, k, v), HEADS * HEAD_DIM, WIDTH))
        b.add(b.mlp(f"{i}", b.norm(f"{i}.norm2", b.x)))
    return b.finish()


def looped_layer() -> ImportedModel:
    """One layer's weights applied three times (ALBERT, Universal Transformers)."""
    b = Unusual()
    letters = (("q", WIDTH, HEADS * HEAD_DIM), ("k", WIDTH, HEAD_DIM), ("v", WIDTH, HEAD_DIM), ("o", WIDTH, WIDTH))
    matrices = {name: b.weights(name, inputs, outputs) for name, inputs, outputs in letters}
    for i in range(3):
        normed = b.norm(f"{i}.norm", b.x)
        q, k, v = (b.node("MatMul", [normed, matrices[letter]]) for letter in "qkv")
        b.add(b.node("MatMul", [b.attend(q, k, v), matrices["o"]]))
    return b.finish()


def biases_on_some() -> ImportedModel:
    """Bias on q and v only; the gate's product is read with and without its bias."""
    b = Unusual()
    normed = b.norm("norm1", b.x)
    q = b.project("q", normed, WIDTH, HEADS * HEAD_DIM, bias=True)
    k, v = b.project("k", normed, WIDTH, HEAD_DIM), b.project("v", normed, WIDTH, HEAD_DIM, bias=True)
    b.add(b.project("o", b.attend(q, k, v), WIDTH, WIDTH, bias=True))
    normed = b.norm("norm2", b.x)
    plain = b.project("gate", normed, WIDTH, HIDDEN)
    biased = b.node("Add", [b.random_constant("gate.bias", HIDDEN), plain])
    b.add(b.project("down", b.node("Mul", [b.silu(biased), plain]), HIDDEN, WIDTH))
    return b.finish()


def packed_projections() -> ImportedModel:
    """Q, K and V in one matrix with a bias; up and gate in one matrix, up first."""
    b = Unusual()
    widths = [HEADS * HEAD_DIM, HEAD_DIM, HEAD_DIM]
    packed = b.project("qkv", b.norm("norm1", b.x), WIDTH, sum(widths), bias=True)
    sizes = b.constant("qkv.sizes", np.array(widths))
    q, k, v = b.node("Split", [packed, sizes], axis=-1, outputs=3)
    b.add(b.project("o", b.attend(q, k, v, softcap=5.0), WIDTH, WIDTH))
    both = b.project("up_gate", b.norm("norm2", b.x), WIDTH, 2 * HIDDEN)
    halves = b.constant("halves", np.array([HIDDEN, HIDDEN]))
    up, gate = b.node("Split", [both, halves], axis=-1, outputs=2)
    b.add(b.project("down", b.node("Mul", [up, b.silu(gate)]), HIDDEN, WIDTH))
    return b.finish()


def scaled_activation() -> ImportedModel:
    """silu(x) times one learned row, which is no gate; values of 64 elements per head, keys of 32."""
    b = Unusual()
    normed = b.norm("norm1", b.x)
    q, k = b.project("q", normed, WIDTH, HEADS * HEAD_DIM), b.project("k", normed, WIDTH, HEAD_DIM)
    v = b.project("v", normed, WIDTH, 64)
    b.add(b.node("MatMul", [b.attend(q, k, v, value_dim=64), b.weights("o.weight", HEADS * 64, WIDTH)]))
    inner = b.silu(b.project("inner", b.norm("norm2", b.x), WIDTH, HIDDEN))
    row = b.random_constant("row", 1, 1, HIDDEN)
    b.add(b.project("down", b.node("Mul", [inner, row]), HIDDEN, WIDTH))
    return b.finish()


def learned_positions() -> ImportedModel:
    """Two tables, layer norm first, partial interleaved rotary on top, one norm read by two sums (post-norms)."""
    b = Unusual()
    b.add(b.node("Gather", [b.random_constant("wpe", CONTEXT, WIDTH, scale=0.3), b.positions], axis=0))
    angles = np.arange(CONTEXT)[:, None] * 0.5 ** np.arange(5)
    tables = [b.constant(n, f(angles).astype(np.float32)) for n, f in (("cos", np.cos), ("sin", np.sin))]
    normed = b.layer_norm("norm1", b.x)
    q, k = b.project("q", normed, WIDTH, HEADS * HEAD_DIM, bias=True), b.project("k", normed, WIDTH, HEAD_DIM)
    rotary = {"rotary_embedding_dim": 10, "interleaved": 1}
    q = b.node("RotaryEmbedding", [q, *tables, b.positions], num_heads=HEADS, **rotary)
    k = b.node("RotaryEmbedding", [k, *tables, b.positions], num_heads=KV_HEADS, **rotary)
    v = b.project("v", normed, WIDTH, HEAD_DIM)
    b.add(b.norm("post1", b.project("o", b.attend(q, k, v), WIDTH, WIDTH)))
    inner = b.node("Gelu", [b.project("fc", b.layer_norm("norm2", b.x), WIDTH, HIDDEN, bias=True)])
    b.add(b.norm("post2", b.project("proj", inner, HIDDEN, WIDTH)))
    return b.finish()


def encoder(context: int = CONTEXT) -> ImportedModel:
    """Three tables and a layer norm before the first layer; attention sees every token."""
    b = Unusual(encoder=True, context=context)
    b.inputs.append(b.types)
    b.add(b.node("Gather", [b.random_constant("wpe", context, WIDTH, scale=0.3), b.positions], axis=0))
    b.add(b.node("Gather", [b.random_constant("types", 2, WIDTH), b.types], axis=0))
    b.x = b.layer_norm("embedding_norm", b.x)
    b.x = b.layer_norm("norm1", b.node("Add", [b.x, b.attention_layer("0", b.x)]))
    inner = b.node("Gelu", [b.project("fc", b.x, WIDTH, HIDDEN, bias=True)], approximate="tanh")
    b.x = b.layer_norm("norm2", b.node("Add", [b.project("proj", inner, HIDDEN, WIDTH), b.x]))
    return b.finish()


DECODERS: Sequence[Callable[[], ImportedModel]] = (
    parallel_blocks,
    shared_weights,
    looped_layer,
    biases_on_some,
    packed_projections,
    scaled_activation,
    learned_positions,
)
