"""A canonical Llama graph written by hand from HF's parameters: what the import should produce, without the import."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


class _Builder:
    """Nodes and initializers in order; values are named after what they hold."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def constant(self, name: str, array: Any) -> ir.Value:
        if name not in self.initializers:
            tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
            value = ir.Value(
                name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
            )
            self.initializers[name] = value
        return self.initializers[name]

    def op(
        self, name: str, op: str, inputs: list[Any], domain: str = "", extra: tuple[str, ...] = (), **attrs: Any
    ) -> Any:
        node = ir.node(op, inputs, attributes=attrs, num_outputs=1 + len(extra), domain=domain, name=f"node.{name}")
        for value, label in zip(node.outputs, (name, *extra), strict=True):
            value.name = label
        self.nodes.append(node)
        return node.outputs[0]


def llama(model: Any, *, window: int = 0, softcap: float = 0.0) -> ir.Model:
    """The canonical graph of an HF Llama; optionally with a sliding window and soft-capped scores in every layer."""
    config, state = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    b = _Builder()
    ids, positions = _input("input_ids", ir.DataType.INT64, "n"), _input("position_ids", ir.DataType.INT64, "n")
    cos, sin = (b.constant(name, table) for name, table in _rotary_tables(model).items())
    inputs, outputs = [ids, positions], []

    def linear(name: str, x: ir.Value, weight: str) -> ir.Value:
        return b.op(name, "MatMul", [x, b.constant(weight, state[f"{weight}.weight"].T)])

    def norm(name: str, x: ir.Value, gain: str) -> ir.Value:
        gain_value = b.constant(gain, state[f"{gain}.weight"])
        return b.op(name, "RMSNormalization", [x, gain_value], axis=-1, epsilon=config.rms_norm_eps)

    table = b.constant("table", state["model.embed_tokens.weight"])
    x = b.op("embedded", "Gather", [table, ids], axis=0)
    for i in range(config.num_hidden_layers):
        layer, path = f"layer{i}", f"model.layers.{i}"
        past = [_input(f"past.{i}.{t}", ir.DataType.FLOAT, kv_heads, "p", head_dim) for t in ("key", "value")]
        h = norm(f"{layer}.attention_input", x, f"{path}.input_layernorm")
        q, k, v = (linear(f"{layer}.{t}", h, f"{path}.self_attn.{t}_proj") for t in "qkv")
        q = b.op(f"{layer}.q_rotated", "RotaryEmbedding", [q, cos, sin, positions], num_heads=heads)
        k = b.op(f"{layer}.k_rotated", "RotaryEmbedding", [k, cos, sin, positions], num_heads=kv_heads)
        present = (f"present.{i}.key", f"present.{i}.value")
        attrs = {"q_num_heads": heads, "kv_num_heads": kv_heads, "is_causal": 1, "scale": head_dim**-0.5}
        attrs |= {"window": window} if window else {}
        attrs |= {"softcap": softcap} if softcap else {}
        domain = "bitwright" if window else ""
        mixed = b.op(f"{layer}.mixed", "Attention", [q, k, v, None, *past], domain, present, **attrs)
        outputs += mixed.producer().outputs[1:]
        inputs += past
        x = b.op(f"{layer}.attended", "Add", [x, linear(f"{layer}.o", mixed, f"{path}.self_attn.o_proj")])
        h = norm(f"{layer}.mlp_input", x, f"{path}.post_attention_layernorm")
        gate, up = linear(f"{layer}.gate", h, f"{path}.mlp.gate_proj"), linear(f"{layer}.up", h, f"{path}.mlp.up_proj")
        swish = b.op(f"{layer}.swish", "Mul", [gate, b.op(f"{layer}.sigmoid", "Sigmoid", [gate])])
        product = b.op(f"{layer}.product", "Mul", [swish, up])
        x = b.op(f"{layer}.out", "Add", [x, linear(f"{layer}.down", product, f"{path}.mlp.down_proj")])
    x = norm("final", x, "model.norm")
    if config.tie_word_embeddings:
        logits = b.op("logits", "MatMul", [x, b.op("table_transposed", "Transpose", [table], perm=[1, 0])])
    else:
        logits = linear("logits", x, "lm_head")
    logits.shape = ir.Shape([1, "n", config.vocab_size])
    graph = ir.Graph(
        inputs,
        [logits, *outputs],
        nodes=b.nodes,
        initializers=list(b.initializers.values()),
        opset_imports={"": 23, "bitwright": 1},
    )
    return ir.Model(graph, ir_version=11)


def _input(name: str, dtype: ir.DataType, *dims: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape([1, *dims]), type=ir.TensorType(dtype))


def _rotary_tables(model: Any) -> dict[str, Any]:
    """cos and sin [positions, head_dim / 2] as HF computes them."""
    import torch

    config = model.config
    positions = torch.arange(config.max_position_embeddings)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1), positions)
    half = config.head_dim // 2
    return {"cos": cos[0, :, :half].numpy(), "sin": sin[0, :, :half].numpy()}
