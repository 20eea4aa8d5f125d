"""The command line of the paired benchmark, and the graph that onnxruntime is given."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peer_onnxruntime import keep_last_token
from benchmarks.peers import PEERS, parse_arguments, run
from benchmarks.synthetic import Shape, write

REPOSITORY = Path(__file__).resolve().parents[2]


def test_help_needs_no_peer() -> None:
    code = (
        "import runpy, sys; sys.argv = ['peers', '--help']; runpy.run_module('benchmarks.peers', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(peer in done.stdout for peer in PEERS)


def test_lists_are_split_and_defaults_are_complete() -> None:
    found = parse_arguments(["folder", "--peers", "llama.cpp,openvino", "-t", "2", "-d", "0,1024", "--tests", "tg8"])
    assert (found.peers, found.threads, found.depths, found.tests) == (
        ["llama.cpp", "openvino"],
        [2],
        [0, 1024],
        ["tg8"],
    )
    assert "q8_0" in found.types and "iq4_nl-pure" in found.types


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--peers", "vllm"], "not known: vllm; known are llama.cpp,"),
        (["--types", "q9"], "not known: q9"),
        (["--artifact", "a/x", "--artifact", "b/x"], "two artifacts have the same folder name"),
        (["--rounds", "0"], "at least one round"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["folder", *arguments])
    assert text in capsys.readouterr().err


def test_only_the_last_token_reaches_the_lm_head() -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    head = np.random.default_rng(0).standard_normal((8, 11)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["hidden"]), helper.make_node("MatMul", ["hidden", "head"], ["logits"])],
        "end",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "tokens", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "tokens", 11])],
        [numpy_helper.from_array(head, "head")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    keep_last_token(model)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((1, 5, 8)).astype(np.float32)
    (logits,) = session.run(["logits"], {"x": x})
    assert session.get_outputs()[0].shape == [1, 1, 11]
    np.testing.assert_allclose(logits, np.maximum(x[:, -1:], 0) @ head, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is absent")
def test_peers_are_prepared_checked_measured_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    write(Shape(layers=2, width=64, hidden=96, heads=4, kv_heads=2, head_dim=16, vocab=512), tmp_path / "model")
    out = tmp_path / "out.json"
    common = [str(tmp_path / "model"), "--work", str(tmp_path / "peers"), "--json", str(out), "-t", "1"]
    common += ["--tests", "pp8,tg4", "--types", "q8_0"]
    run(parse_arguments([*common, "--peers", "llama.cpp", "--rounds", "1"]))
    (home,) = (tmp_path / "peers").iterdir()
    prepared = (home / "q8_0.gguf").stat().st_mtime_ns
    run(parse_arguments([*common, "--peers", "llama.cpp,onnxruntime", "--rounds", "2"]))
    assert (home / "q8_0.gguf").stat().st_mtime_ns == prepared
    document = json.loads(out.read_text())
    labels = ["llama.cpp q8_0", "onnxruntime int8", "onnxruntime int4"]
    assert [entry["label"] for entry in document["contestants"]] == labels
    assert all(entry["correlation"] > 0.9 for entry in document["contestants"])
    rounds = {(row["contestant"], row["test"]): row["rounds"] for row in document["rows"]}
    assert rounds == {(label, test): 3 if "llama" in label else 2 for label in labels for test in ("pp8", "tg4")}
