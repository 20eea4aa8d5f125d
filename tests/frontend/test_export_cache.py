"""A model is traced once: later imports of its configuration give a kept graph their own weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.numpy

from bitwright.frontend import export_cache, load, torch_model
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.weights import graph_digest
from tests.canonical_model import decoder
from tests.frontend import zoo


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept graphs, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bitwright" / "exports"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Classes of the models that were traced, in order."""
    classes: list[str] = []
    for name in ("export_decoder", "export_encoder"):
        export: Callable[..., Any] = getattr(torch_model, name)

        def tracing(model: Any, export: Callable[..., Any] = export) -> Any:
            classes.append(type(model).__name__)
            return export(model)

        monkeypatch.setattr(torch_model, name, tracing)
    return classes


def both(folder: Path) -> tuple[ImportedModel, ImportedModel]:
    return load(folder), load(folder)


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "bert"])
def test_the_second_import_equals_the_first(name: str, tmp_path: Path, cache: Path, traced: list[str]) -> None:
    first, second = both(zoo.save_hf_folder(name, tmp_path / name))
    assert len(traced) == 1 and len(list(cache.iterdir())) == 1
    assert first.digest == second.digest
    assert first.layers == second.layers


def test_a_kept_graph_has_no_weights(tmp_path: Path, cache: Path) -> None:
    folder = zoo.save_hf_folder("llama_tied", tmp_path / "model")
    load(folder)
    (kept,) = cache.iterdir()
    table = next(iter(safetensors.numpy.load_file(folder / "model.safetensors").values()))
    assert table.tobytes()[:64] not in kept.read_bytes()


def test_other_weights_of_the_same_configuration_are_taken(tmp_path: Path, cache: Path, traced: list[str]) -> None:
    folder = zoo.save_hf_folder("llama_tied", tmp_path / "model")
    before = load(folder)
    path = folder / "model.safetensors"
    changed = {name: np.asarray(tensor * 1.5) for name, tensor in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(changed, path, {"format": "pt"})
    assert load(folder).digest != before.digest
    assert len(traced) == 1


def test_another_configuration_is_traced(tmp_path: Path, cache: Path, traced: list[str]) -> None:
    folder = zoo.save_hf_folder("llama_tied", tmp_path / "model")
    before = load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    assert load(folder).digest != before.digest
    assert len(traced) == 2


def test_a_model_is_the_same_for_any_number_of_positions_and_another_with_other_angles(tmp_path: Path) -> None:
    """So that a plan fits whatever context a model is compiled for."""
    folder = zoo.save_hf_folder("llama_tied", tmp_path / "model")
    whole = load(folder)
    assert load(folder, context=64).digest == whole.digest
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0}))
    assert load(folder).digest != whole.digest


def test_a_damaged_graph_is_traced_again(tmp_path: Path, cache: Path, traced: list[str]) -> None:
    folder = zoo.save_hf_folder("llama_tied", tmp_path / "model")
    before = load(folder)
    (kept,) = cache.iterdir()
    for damage in (b"", kept.read_bytes()[:1000], b"not a graph"):
        kept.write_bytes(damage)
        assert load(folder).digest == before.digest
    assert len(traced) == 4


def test_without_a_cache_folder_models_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: list[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first, second = both(zoo.save_hf_folder("llama_tied", tmp_path / "model"))
    assert first.digest == second.digest and len(traced) == 2


def test_graphs_unused_for_longest_go(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, traced: list[str]
) -> None:
    monkeypatch.setattr(export_cache, "MOST", 2)
    cache.mkdir(parents=True)
    for age, name in enumerate(("new.onnx", "old.onnx")):
        (cache / name).write_bytes(b"")
        os.utime(cache / name, (1000 - age, 1000 - age))
    load(zoo.save_hf_folder("llama_tied", tmp_path / "model"))
    assert len(list(cache.iterdir())) == 2
    assert not (cache / "old.onnx").exists() and (cache / "new.onnx").exists()


def test_a_graph_has_the_digest_that_it_has_when_it_was_written_and_read() -> None:
    """Attributes of a traced graph are doubles, in a file they are singles: 1e-05 and 9.999999747378752e-06."""
    graph = decoder().graph
    names = {str(value.name): str(value.name) for value in graph.graph.initializers.values()}
    epsilon = next(node.attributes["epsilon"].value for node in graph.graph if "epsilon" in node.attributes)
    assert epsilon != float(np.float32(epsilon))
    read = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    assert graph_digest(read, names) == graph_digest(graph, names)
