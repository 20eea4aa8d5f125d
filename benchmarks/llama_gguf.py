"""A Hugging Face llama folder as llama.cpp's GGUF, in floating point and in llama.cpp's own quantized types."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.llama_library import llama_library

LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class QuantizedType:
    """One way llama.cpp stores weights.

    Attributes:
        name: as on the command line; also the file name.
        ftype: name of the ``LLAMA_FTYPE_MOSTLY_*`` constant.
        pure: every matrix in that type. Otherwise llama.cpp gives the token table (here also the lm_head) more bits.
    """

    name: str
    ftype: str
    pure: bool = False


TYPES = {
    entry.name: entry
    for entry in (
        QuantizedType("q8_0", "LLAMA_FTYPE_MOSTLY_Q8_0"),
        QuantizedType("q4_0", "LLAMA_FTYPE_MOSTLY_Q4_0"),
        QuantizedType("q4_0-pure", "LLAMA_FTYPE_MOSTLY_Q4_0", pure=True),
        QuantizedType("q4_k_m", "LLAMA_FTYPE_MOSTLY_Q4_K_M"),
        QuantizedType("iq4_nl-pure", "LLAMA_FTYPE_MOSTLY_IQ4_NL", pure=True),
        QuantizedType("q6_k", "LLAMA_FTYPE_MOSTLY_Q6_K"),
        QuantizedType("q5_k_m", "LLAMA_FTYPE_MOSTLY_Q5_K_M"),
        QuantizedType("iq4_xs", "LLAMA_FTYPE_MOSTLY_IQ4_XS"),
        QuantizedType("q3_k_m", "LLAMA_FTYPE_MOSTLY_Q3_K_M"),
        QuantizedType("q2_k", "LLAMA_FTYPE_MOSTLY_Q2_K"),
    )
}
TIMED = ("q8_0", "q4_0", "q4_0-pure", "q4_k_m", "iq4_nl-pure")
"""Those whose speed is compared: the others are slower at more bytes."""


def interleave_rotary_rows(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder the rows of a Q or K projection from Hugging Face's rotary convention to llama.cpp's.

    Hugging Face rotates element i of a head with element i + D/2; llama.cpp's llama architecture rotates the neighbours
    2i and 2i + 1. So row 2i + s of a head is row s*D/2 + i there. Scores are unchanged: Q and K move alike.

    Args:
        weight: (heads * D, inputs).
    """
    rows, *rest = weight.shape
    half = rows // heads // 2
    return weight.reshape(heads, 2, half, *rest).swapaxes(1, 2).reshape(weight.shape)


def tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor under its GGUF name, read when it is asked for. A tied lm_head has none of its own, as there."""
    import safetensors

    reader: Any = safetensors.safe_open
    files = [reader(str(file), framework="numpy") for file in sorted(folder.glob("*.safetensors"))]
    places = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - a file is no dict

    def read(name: str) -> NDArray[Any]:
        array: NDArray[Any] = places[name].get_tensor(name)
        return array

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    yield "token_embd.weight", read("model.embed_tokens.weight")
    for layer in range(config["num_hidden_layers"]):
        for source, target in LAYER_TENSORS.items():
            weight = read(f"model.layers.{layer}.{source}.weight")
            if target in heads:
                weight = interleave_rotary_rows(weight, heads[target])
            yield f"blk.{layer}.{target}.weight", weight
    yield "output_norm.weight", read("model.norm.weight")
    if not config["tie_word_embeddings"]:
        yield "output.weight", read("lm_head.weight")


def write_gguf(folder: Path, out: Path, dtype: str = "float32") -> None:
    """Write the llama-architecture HF ``folder`` as GGUF without a vocabulary: the benchmark speaks in token ids.

    Args:
        dtype: of matrices, ``float32`` or ``float16``; vectors are float32.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise SystemExit(f"{folder}: only llama folders are written as GGUF here, this is {config['model_type']}")
    temporary = out.with_suffix(".tmp")
    # Tensors wait in a file, not in memory, for the header to be complete.
    writer = gguf.GGUFWriter(temporary, "llama", use_temp_file=True)
    writer.add_name(folder.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "float32" else gguf.LlamaFileType.MOSTLY_F16)
    for name, weight in tensors(folder, config):
        kept = np.dtype(dtype) if weight.ndim > 1 else np.dtype("float32")
        writer.add_tensor(name, np.ascontiguousarray(weight, dtype=kept))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(out)


def rope_theta(config: dict[str, Any]) -> float:
    """Newer transformers keep it under ``rope_parameters``."""
    nested = config.get("rope_parameters") or {}
    return float(nested.get("rope_theta") or config["rope_theta"])


def quantize(source: Path, kind: QuantizedType, out: Path) -> None:
    """Run llama.cpp's own quantizer, without an importance matrix, on all cores."""
    llama_cpp = llama_library()
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = os.cpu_count() or 1
    params.ftype = getattr(llama_cpp, kind.ftype)
    params.pure = kind.pure
    temporary = out.with_suffix(".tmp")
    status = llama_cpp.llama_model_quantize(bytes(source), bytes(temporary), ctypes.byref(params))
    if status:
        raise SystemExit(f"llama_model_quantize({source}, {kind.name}) failed with status {status}")
    temporary.replace(out)
