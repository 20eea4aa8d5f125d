"""Hugging Face folders of well-known shapes with random weights: for speed, where the weights' meaning plays no part.

    python -m benchmarks.synthetic llama-3.2-1b models/synthetic/llama-3.2-1b
    bitwright compile models/synthetic/llama-3.2-1b --scheme u4g32a8 -o artifacts/1b-u4g32a8
    python -m benchmarks.peers models/synthetic/llama-3.2-1b --artifact artifacts/1b-u4g32a8 --types q4_0-pure,q8_0

``llama-3.2-1b`` is complete (1.24 billion parameters, 2.5 GB in half precision). ``llama-3-8b-layers`` has the layers
of Llama-3-8B, but four of them and a table of 32,000 rows (1.0 billion parameters, 2.0 GB): it shows what a layer
costs, not what the model costs. Weights are drawn block by block from a fixed seed: 20 seconds, 0.2 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 1234
BLOCK = 1 << 24
"""Numbers drawn at a time."""


@dataclass(frozen=True)
class Shape:
    """A llama-architecture model with a tied table."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "bos_token_id": 1,
            "dtype": "float16",
            "eos_token_id": 2,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "vocab_size": self.vocab,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names as transformers has them, and shapes."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.width)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield f"{prefix}input_layernorm.weight", (self.width,)
            yield f"{prefix}self_attn.q_proj.weight", (q, self.width)
            yield f"{prefix}self_attn.k_proj.weight", (kv, self.width)
            yield f"{prefix}self_attn.v_proj.weight", (kv, self.width)
            yield f"{prefix}self_attn.o_proj.weight", (self.width, q)
            yield f"{prefix}post_attention_layernorm.weight", (self.width,)
            yield f"{prefix}mlp.gate_proj.weight", (self.hidden, self.width)
            yield f"{prefix}mlp.up_proj.weight", (self.hidden, self.width)
            yield f"{prefix}mlp.down_proj.weight", (self.width, self.hidden)
        yield "model.norm.weight", (self.width,)


SHAPES = {
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256),
    "llama-3-8b-layers": Shape(4, 4096, 14336, 32, 8, 128, 32000),
}


def draw(shape: tuple[int, ...], random: np.random.Generator) -> Iterator[NDArray[np.float16]]:
    """Blocks of a float16 tensor: ones for a gain, else normal numbers that keep the size of what they multiply."""
    count, scale = math.prod(shape), shape[-1] ** -0.5
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        if len(shape) == 1:
            yield np.ones(size, np.float16)
        else:
            yield (random.standard_normal(size, np.float32) * np.float32(scale)).astype(np.float16)


def write(shape: Shape, out: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, never more than a block of weights in memory."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(shape.config, indent=2) + "\n", encoding="utf-8")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, extents in shape.tensors():
        start, end = end, end + 2 * math.prod(extents)
        header[name] = {"dtype": "F16", "shape": list(extents), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random, temporary = np.random.default_rng(SEED), out / "model.tmp"
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, extents in shape.tensors():
            for block in draw(extents, random):
                file.write(block.tobytes())
    temporary.replace(out / "model.safetensors")


def main() -> None:
    description, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synthetic",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    write(SHAPES[arguments.shape], arguments.out)
    size = (arguments.out / "model.safetensors").stat().st_size
    print(f"{arguments.out}: {size / 2e9:.2f} billion parameters of random weights, {size / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
