"""A folder whose weights stay in their files is the same import as one that torch has loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bitwright.errors import InputError
from bitwright.frontend import load, torch_model, torch_shell
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.stored_weights import stored_tensors
from tests.frontend import zoo

Importer = Callable[..., ImportedModel]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: zoo.save_hf_folder(name, tmp_path / name)


def shell(folder: Path) -> ir.Model | None:
    stored = stored_tensors([folder / "model.safetensors"])
    assert stored is not None
    return torch_shell.export_shell(torch_model.load_config(folder), stored, str(folder))


@pytest.mark.parametrize("name", ["llama_tied", "llama", "gpt2", "phi3"])
def test_no_weight_is_loaded_by_torch(folder: Callable[[str], Path], name: str) -> None:
    path = folder(name)
    graph, stored = shell(path), stored_tensors([path / "model.safetensors"])
    assert graph is not None and stored is not None
    lazy = [v.const_value for v in graph.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)]
    assert len(lazy) == len(stored)
    assert sum(tensor.nbytes for tensor in lazy) == 4 * sum(np.prod(tensor.shape) for tensor in stored.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_the_import_is_the_same(folder: Callable[[str], Path], imported: Importer, name: str) -> None:
    assert load(folder(name)).digest == imported(name).digest


def test_parameters_that_the_graph_does_not_have_are_left_to_torch(folder: Callable[[str], Path]) -> None:
    path = folder("bert")
    assert shell(path) is None, "the pooler is no part of the hidden states"
    assert load(path).kind == "encoder"


def test_halves_are_widened_as_torch_widens_them(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder("llama_tied")
    weights = load_file(path / "model.safetensors")
    kinds = (torch.bfloat16, torch.float16)
    halves = {name: tensor.to(kinds[i % 2]) for i, (name, tensor) in enumerate(sorted(weights.items()))}
    save_file(halves, path / "model.safetensors", metadata={"format": "pt"})
    found = load(path)
    dtypes = {str(tensor.dtype) for tensor in (stored_tensors([path / "model.safetensors"]) or {}).values()}
    assert dtypes == {"BFLOAT16", "FLOAT16"}
    monkeypatch.setattr(torch_shell, "export_shell", lambda *_: None)
    assert load(path).digest == found.digest


def test_what_transformers_would_convert_is_left_to_it(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import conversion_mapping as library
    from transformers.core_model_loading import WeightRenaming

    library.get_checkpoint_conversion_mapping("llama")  # fills the table that is changed here
    renames = [WeightRenaming(source_patterns="old_name", target_patterns="new_name")]
    monkeypatch.setitem(library._checkpoint_conversion_mapping_cache, "llama", renames)
    assert shell(folder("llama")) is None


@pytest.mark.parametrize("change", ["extra", "renamed", "reshaped"])
def test_weights_that_are_not_the_parameters_one_by_one_are_left_to_torch(
    folder: Callable[[str], Path], change: str
) -> None:
    path = folder("llama")
    stored = stored_tensors([path / "model.safetensors"])
    assert stored is not None
    tensor = stored.pop("model.norm.weight")
    names = {"extra": ("model.norm.weight", "other"), "renamed": ("norm.weight",), "reshaped": ("model.norm.weight",)}
    for name in names[change]:
        stored[name] = replace(tensor, shape=(1, *tensor.shape)) if change == "reshaped" else tensor
    assert torch_shell.export_shell(torch_model.load_config(path), stored, str(path)) is None


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.int8)}, tmp_path / "model.safetensors")
    assert stored_tensors([tmp_path / "model.safetensors"]) is None


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_tensor_is_read_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from safetensors.numpy import save_file

    monkeypatch.setattr("bitwright.frontend.stored_weights.BLOCK", 4)
    arrays = {name: np.random.default_rng(i).random((3, i)).astype(kind) for i, name in enumerate("abc")}
    save_file(arrays, tmp_path / "model.safetensors")
    found = stored_tensors([tmp_path / "model.safetensors"])
    assert found is not None
    for name, array in arrays.items():
        read = found[name].lazy(name).numpy()
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, array.astype(np.float32))


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_a_file_cut_off_after_its_header_was_read_is_an_input_error(tmp_path: Path, kind: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((8, 1024), kind)}, path)
    found = stored_tensors([path])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)
    assert found is not None
    with pytest.raises(InputError, match="the data of tensor 'a' cannot be read") as error:
        found["a"].lazy("a").numpy()
    assert error.value.where == str(path)


PEAK = """
import resource, sys
from bitwright.frontend import load, torch_shell
if sys.argv[2] == "torch":
    torch_shell.export_shell = lambda *_: None
load(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_model_is_not_held_in_single_precision(tmp_path: Path) -> None:
    from benchmarks.synthetic import Shape, write

    shape = Shape(layers=12, width=1024, hidden=2816, heads=16, kv_heads=4, head_dim=64, vocab=4096)
    write(shape, tmp_path)
    parameters = (tmp_path / "model.safetensors").stat().st_size // 2

    def peak(way: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), way], capture_output=True, text=True, timeout=300, check=True
        )
        return int(done.stdout)

    assert peak("files") < peak("torch") - 3 * parameters
