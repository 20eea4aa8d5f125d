"""The GGUF that llama.cpp is measured on must be the model bitwright is measured on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.llama_gguf import TYPES, interleave_rotary_rows, quantize, write_gguf

HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, LAYERS = 4, 2, 16, 128, 96, 2
WIDTH = HEADS * HEAD_DIM
MAX_LOGIT_DIFFERENCE = 1e-4
"""Two float32 implementations of two layers; logits are of the order of 1."""

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is absent")


def rotate_half_split(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Hugging Face: element i turns with element i + D/2."""
    first, second = np.split(x, 2)
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )


def rotate_neighbours(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """llama.cpp: element 2i turns with element 2i + 1, as complex numbers."""
    turned = (x[0::2] + 1j * x[1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=1).ravel()


def test_reordered_rows_give_the_same_scores_under_the_other_rotary_convention() -> None:
    random = np.random.default_rng(0)
    q, k = random.standard_normal((2, 2 * HEAD_DIM, 8))
    x, y = random.standard_normal((2, 8))
    at, to = random.standard_normal((2, HEAD_DIM // 2))
    q_moved, k_moved = interleave_rotary_rows(q, 2), interleave_rotary_rows(k, 2)
    for head in (slice(0, HEAD_DIM), slice(HEAD_DIM, None)):
        expected = rotate_half_split((q @ x)[head], at) @ rotate_half_split((k @ y)[head], to)
        actual = rotate_neighbours((q_moved @ x)[head], at) @ rotate_neighbours((k_moved @ y)[head], to)
        assert actual == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama in a Hugging Face folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    path = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).eval().save_pretrained(path)
    return path


def test_every_tensor_is_written_once_and_metadata_follows_the_config(folder: Path, tmp_path: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    write_gguf(folder, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    written = {tensor.name: tensor for tensor in reader.tensors}
    # Nine tensors a layer, the table, the last norm; no lm_head, which is tied.
    assert len(written) == 9 * LAYERS + 2
    source = load_file(str(folder / "model.safetensors"))
    assert sum(tensor.n_elements for tensor in reader.tensors) == sum(weight.size for weight in source.values())
    np.testing.assert_array_equal(
        written["blk.1.ffn_down.weight"].data, source["model.layers.1.mlp.down_proj.weight"], strict=True
    )
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["llama.attention.head_count_kv"] == KV_HEADS
    assert fields["llama.rope.dimension_count"] == HEAD_DIM
    assert fields["llama.vocab_size"] == VOCAB
    assert not list(tmp_path.glob("*.tmp"))


def test_half_precision_is_for_matrices_alone(folder: Path, tmp_path: Path) -> None:
    import gguf

    write_gguf(folder, tmp_path / "model.gguf", "float16")
    kinds = {len(tensor.shape): str(tensor.data.dtype) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds == {1: "float32", 2: "float16"}


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    with pytest.raises(SystemExit, match="only llama folders are written as GGUF here, this is gpt2"):
        write_gguf(tmp_path, tmp_path / "model.gguf")


@needs_llama_cpp
def test_llama_cpp_computes_what_torch_computes(folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.llama_engine import LlamaEngine

    model = tmp_path / "model.gguf"
    write_gguf(folder, model)
    ids = np.random.default_rng(0).integers(0, VOCAB, 12).tolist()
    with LlamaEngine(model, threads=1, context=64, exact=True) as engine:
        engine.prefill(ids)
        whole = engine.last_logits()
        engine.reset()
        engine.prefill(ids[:-1])
        engine.decode(ids[-1])
        split = engine.last_logits()
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.abs(whole - expected).max() < MAX_LOGIT_DIFFERENCE
    assert np.abs(split - expected).max() < MAX_LOGIT_DIFFERENCE


@needs_llama_cpp
def test_rows_are_the_logits_of_prompts_that_end_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of eight, so that the second one's positions must count on."""
    from benchmarks import llama_engine

    monkeypatch.setattr(llama_engine, "BATCH", 8)
    model = tmp_path / "model.gguf"
    write_gguf(folder, model)
    ids = np.random.default_rng(1).integers(0, VOCAB, 12)
    with llama_engine.LlamaEngine(model, threads=1, context=64, exact=True) as engine:
        rows = np.concatenate(list(engine.rows(ids)))
        assert rows.shape == (12, VOCAB)
        for count in (1, 8, 12):
            engine.reset()
            engine.prefill(ids[:count].tolist())
            assert np.abs(rows[count - 1] - engine.last_logits()).max() < MAX_LOGIT_DIFFERENCE


@needs_llama_cpp
def test_pure_types_spend_fewer_bytes_on_the_table(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_gguf(folder, model)
    sizes = {}
    for name in ("q8_0", "q4_0", "q4_0-pure"):
        quantize(model, TYPES[name], tmp_path / f"{name}.gguf")
        sizes[name] = (tmp_path / f"{name}.gguf").stat().st_size
    assert sizes["q4_0-pure"] < sizes["q4_0"] < sizes["q8_0"] < model.stat().st_size
    # Q4_0 spends 18 bytes on 32 weights; here every matrix's rows are multiples of 32.
    matrices = VOCAB * WIDTH + LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * KV_HEADS * HEAD_DIM + 3 * WIDTH * FFN)
    norms = 4 * WIDTH * (2 * LAYERS + 1)
    import gguf

    stored = sum(tensor.n_bytes for tensor in gguf.GGUFReader(tmp_path / "q4_0-pure.gguf").tensors)
    assert stored == matrices * 18 // 32 + norms
