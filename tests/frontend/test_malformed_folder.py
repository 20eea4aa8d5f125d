"""HF folders that are broken, or that lie, end in our errors: what is wrong, where, and which limit it broke."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.errors import InputError, UnsupportedError
from tests.frontend.malformed import expect

WIDTH, VOCAB = 32, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,),
    "model.layers.0.input_layernorm.weight": (WIDTH,), "model.layers.0.post_attention_layernorm.weight": (WIDTH,),
    "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH), "model.layers.0.self_attn.k_proj.weight": (16, WIDTH),
    "model.layers.0.self_attn.v_proj.weight": (16, WIDTH), "model.layers.0.self_attn.o_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.mlp.gate_proj.weight": (64, WIDTH), "model.layers.0.mlp.up_proj.weight": (64, WIDTH),
    "model.layers.0.mlp.down_proj.weight": (WIDTH, 64),
}  # fmt: skip


def safetensors(entries: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound HF folder; tests break one thing in it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_weights(tmp_path, SHAPES)
    return tmp_path


def write_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    entries, data = {}, b""
    for name, shape in shapes.items():
        content = np.ones(shape, np.float32).tobytes()
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    (folder / "model.safetensors").write_bytes(safetensors(entries, data))


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_no_such_model(tmp_path: Path) -> None:
    error = expect(InputError, tmp_path / "absent", "there is no model")
    assert "smollm2-135m" in (error.remedy or "")


def test_folder_without_config(tmp_path: Path) -> None:
    expect(InputError, tmp_path, "holds no config.json")


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x80\x04")
    expect(InputError, tmp_path / "model.bin", "is no model that can be read", "ends in .onnx or .gguf")


@pytest.mark.parametrize(
    ("content", "what", "limit"),
    [
        (b'{"model_type": "llama"', "not valid JSON", "delimiter"),
        (b"\xff\xfe{}", "not valid JSON", "utf-8"),
        (b"[1, 2]", "holds a JSON list", "object"),
        (b"[" * 100_000, "not valid JSON", "recursion"),
    ],
    ids=["truncated", "invalid UTF-8", "a list", "nested too deeply"],
)
def test_config_that_is_not_json(folder: Path, content: bytes, what: str, limit: str) -> None:
    (folder / "config.json").write_bytes(content)
    expect(InputError, folder, what, limit)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"hidden_size": 33}, "the config of the model cannot be loaded"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"vocab_size": 1 << 23}, "the config describes"),
        ({"num_hidden_layers": 300}, "the config describes"),
        ({"intermediate_size": 96}, "0 weights are missing and 3 have another shape"),
        ({"num_hidden_layers": 2}, "9 weights are missing"),
    ],
    ids=lambda value: next(iter(value.items()), None).__repr__() if isinstance(value, dict) else "",
)
def test_absurd_or_foreign_config(folder: Path, changes: dict[str, Any], what: str) -> None:
    write_config(folder, **changes)
    expect(InputError, folder, what)


def test_unknown_architecture(folder: Path) -> None:
    write_config(folder, model_type="perceptron-9000", architectures=["PerceptronForCausalLM"])
    error = expect(UnsupportedError, folder, "not supported by the installed transformers")
    assert error.__cause__ is not None


def test_remote_code_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    write_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    expect(UnsupportedError, folder, "not supported by the installed transformers")
    assert not (folder / "ran").exists()


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    expect(UnsupportedError, folder, "no safetensors weights", "pickled weights are never opened")


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "a header of 0 bytes in a file of 0"),
        (b"\x01\x02", "in a file of 2"),
        (struct.pack("<Q", 1 << 60) + b"{}", "a header of 1152921504606846976 bytes"),
        (safetensors(one(), b"")[:-2], "a header of"),
        (struct.pack("<Q", 3) + b"{]}", "not valid JSON"),
        (safetensors({"w": 3}, b""), "its entry is not an object"),
        (safetensors(one("F33"), bytes(8)), "dtype 'F33'"),
        (safetensors(one(shape=[-2]), bytes(8)), "shape [-2]"),
        (safetensors(one(shape=[1 << 61, 1 << 61]), bytes(8)), "8 bytes of data"),
        (safetensors(one(offsets=[0, 16]), bytes(8)), "data_offsets [0, 16]"),
        (safetensors(one(offsets=[8, 0]), bytes(8)), "data_offsets [8, 0]"),
        (safetensors(one(shape=[3]), bytes(8)), "8 bytes of data"),
        (safetensors(one() | {"v": one()["w"]}, bytes(8)), "its data begins at 0"),
        (safetensors(one(), bytes(12)), "holds 12 bytes of data"),
    ],
)
def test_lying_safetensors(folder: Path, content: bytes, what: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    expect(InputError, folder, what)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "weights.bin"])
def test_index_that_points_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    expect(InputError, folder, f"the index names the file '{name}'", "in the same folder")


def test_index_names_a_missing_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    expect(InputError, folder, "the weight file 'a.safetensors' is missing")


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer"),
        ("tokenizer.json", b"{", "not valid JSON"),
        ("generation_config.json", b'{"eos_token_id": ["</s>"]}', "token ids ['</s>']"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template is no text"),
        ("chat_template.jinja", b"\xff\xff", "chat template is not UTF-8"),
    ],
)
def test_broken_companions(folder: Path, file: str, content: bytes, what: str) -> None:
    (folder / file).write_bytes(content)
    expect(InputError, folder, what)
