"""The same model read from every kind of file is the same import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from bitwright.errors import UsageError
from bitwright.frontend import ImportedModel, builtin, load
from bitwright.frontend.gguf import split_digits
from bitwright.frontend.gguf_header import read_header
from tests.frontend import zoo

Importer = Callable[..., ImportedModel]


def test_hf_folder(imported: Importer, tmp_path: Path) -> None:
    phases: list[str] = []
    model = load(zoo.save_hf_folder("llama_tied", tmp_path / "tiny"), progress=lambda phase, _: phases.append(phase))
    assert model.digest == imported("llama_tied", 23, "sdpa").digest
    assert (model.name, model.context) == ("tiny", zoo.CONTEXT)
    assert model.chat_template == zoo.CHAT_TEMPLATE
    assert model.generation["eos_token_id"] == [zoo.EOS]
    assert json.loads(model.tokenizer_json or b"")["model"]["type"] == "BPE"
    assert phases[:2] == ["read and export", "normalise"] and set(phases[2:]) == {"check weights"}


def test_onnx_file_with_external_data_and_siblings(imported: Importer, tmp_path: Path) -> None:
    ir.save(imported("llama_tied", 23, "sdpa").graph, tmp_path / "model.onnx", external_data="model.onnx.data")
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"context_length": zoo.CONTEXT}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3], "top_p": 0.9}))
    model = load(tmp_path / "model.onnx")
    assert model.digest == imported("llama_tied", 23, "sdpa").digest, "canonical graphs are left as they are"
    assert model.context == zoo.CONTEXT
    assert model.generation == {"eos_token_id": [2, 3], "top_p": 0.9}


def test_context_may_be_smaller_than_the_models_but_not_larger(imported: Importer, tmp_path: Path) -> None:
    ir.save(imported("llama_tied", 23, "sdpa").graph, tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": zoo.CONTEXT}))
    assert load(tmp_path / "model.onnx", context=64).context == 64
    with pytest.raises(UsageError, match="a context of 257 positions") as caught:
        load(tmp_path / "model.onnx", context=zoo.CONTEXT + 1)
    assert caught.value.limit == f"the model has {zoo.CONTEXT}"


def test_an_onnx_file_that_does_not_state_its_context_asks_for_it(imported: Importer, tmp_path: Path) -> None:
    ir.save(imported("llama_tied", 23, "sdpa").graph, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="does not say how many positions") as caught:
        load(tmp_path / "model.onnx")
    assert caught.value.remedy == "pass the context"


def test_the_builtin_model_is_a_valid_gguf() -> None:
    header = read_header(builtin.path_of("smollm2-135m"))
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.pre"] == "smollm"
    assert len(header.tensors) == 272  # 30 layers of 9 tensors, the table and the last norm


def test_split_digits_adds_the_step_once() -> None:
    plain = json.dumps({"pre_tokenizer": {"type": "ByteLevel"}})
    expected = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]
    assert json.loads(split_digits(plain))["pre_tokenizer"]["pretokenizers"] == expected
    assert json.loads(split_digits(split_digits(plain)))["pre_tokenizer"]["pretokenizers"] == expected


@pytest.mark.slow
def test_the_builtin_model() -> None:
    import tokenizers

    model = load("smollm2-135m", context=512)
    assert (model.kind, model.vocab, len(model.layers), model.context) == ("decoder", 49152, 30, 512)
    assert model.generation == {"bos_token_id": 1, "eos_token_id": [2]}
    assert "<|im_start|>" in (model.chat_template or "")
    tokenizer = tokenizers.Tokenizer.from_str((model.tokenizer_json or b"").decode())
    assert len(tokenizer.encode("1987").tokens) == 4, "every digit is a token of its own"
    assert tokenizer.decode(tokenizer.encode("Born in 1987, she jumps.").ids) == "Born in 1987, she jumps."
