"""A plan that cuts matrices into runs, with codebooks, and three schemes for Q, K and V, is compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bitwright import pipeline
from bitwright.errors import UnsupportedError
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options
from bitwright.passes.quantizers.methods import quantize
from bitwright.plan import Plan
from bitwright.program import Program
from bitwright.runs import Run, parse_weights, runs_of
from bitwright.runtime.artifact import Artifact
from bitwright.runtime.session import load
from bitwright.scheme import CacheScheme
from bitwright.site import Site
from bitwright.target import Target
from tests.canonical_model import Shape, decoder

# Every matrix has a multiple of 64 rows, so no tile is padded.
SHAPE = Shape(layers=1, width=128, heads=4, kv_heads=2, head_dim=32, hidden=192, vocab=192)
SCHEMES = {
    "table": "u8g32a8:64+c6g64a8:128",
    "layer.0.q": "u4g32a8:64+c3g64a8:64",
    "layer.0.k": "u6g32a8",
    "layer.0.v": "c4g64a8",
    "layer.0.o": "u3g32a16:64+f16:64",
    "layer.0.mlp.0": "u5g64za8:128+u8rowa8:64",
    "layer.0.mlp.1": "c5g32a8",
    "layer.0.mlp.2": "u8g32a8",
}
# Of integer activations with steps of absmax / 127 per group, relative to the spread of the logits.
INT8_ACTIVATIONS = 0.03
# The largest error of a16, relative to the same: two int8 terms leave about 2**-15 of a group's largest activation.
FLOAT_ACTIVATIONS = 1e-3


def _planned(changes: dict[str, str], cache_bits: int) -> tuple[ImportedModel, Program, Plan]:
    model = decoder(SHAPE)
    options = Options(context=64, cache_bits=cache_bits)
    plan, program = pipeline.plan_and_program(model, options, Target.parse("native"), lambda _: None)
    schemes = {**plan.schemes, **{site: parse_weights(text) for site, text in changes.items()}}
    return model, program, replace(plan, schemes=schemes)


def _runs(site: Site, plan: Plan) -> tuple[Run, ...]:
    scheme = plan.schemes[site.name]
    assert not isinstance(scheme, CacheScheme)
    return runs_of(scheme, site.shape[0])


def _stands_for(weights: Any, runs: tuple[Run, ...]) -> Any:
    """The float matrix that the quantized runs of float32 [outputs, inputs] stand for."""
    parts, first = [], 0
    for run in runs:
        rows, weight = np.ascontiguousarray(weights[first : first + run.rows]), run.scheme.weight
        parts.append(
            rows.astype(f"float{weight.bits}")
            if weight.is_float
            else quantize("rtn", rows, weight, None).dequantize(weight)
        )
        first += run.rows
    return np.concatenate(parts).astype(np.float32)


def _dequantized(program: Program, plan: Plan) -> ImportedModel:
    model = decoder(SHAPE)
    values = model.graph.graph.initializers
    for site in (site for site in program.sites if site.weight):
        value = values[site.weight.removesuffix(".T")]
        array = np.asarray(value.const_value.numpy())  # type: ignore[union-attr]
        transposed = site.weight.endswith(".T")  # the factor of a MatMul is [inputs, outputs]
        exact = _stands_for(array.T if transposed else array, _runs(site, plan))
        value.const_value = ir.tensor(np.ascontiguousarray(exact.T) if transposed else exact)
    return model


def _compile(model: ImportedModel, plan: Plan, folder: Path) -> Artifact:
    file = folder / "plan.json"
    file.write_text(plan.to_json())
    return pipeline.compile(model, folder / "a", plan=file, context=64, chunk=16)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Plan, Artifact]:
    model, program, plan = _planned(SCHEMES, cache_bits=16)
    return program, plan, _compile(model, plan, tmp_path_factory.mktemp("mixed"))


def test_it_computes_what_its_numbers_stand_for(compiled: tuple[Program, Plan, Artifact]) -> None:
    program, plan, artifact = compiled
    exact, session = _dequantized(program, plan), load(artifact.folder)
    ids = np.random.default_rng(7).integers(0, SHAPE.vocab, 45)
    expected = Interpreter(exact.graph).logits(ids)
    limit = INT8_ACTIVATIONS * expected.std()
    assert np.sqrt(np.mean((session.logits(ids) - expected) ** 2)) < limit
    session.reset()
    session.prefill(ids[:40])
    for position in range(40, 45):  # token by token, in another kernel
        assert np.sqrt(np.mean((session.decode(int(ids[position])) - expected[position]) ** 2)) < limit


def test_the_plans_bytes_are_the_files(compiled: tuple[Program, Plan, Artifact]) -> None:
    program, plan, artifact = compiled
    runs = [(run, site.shape[1]) for site in program.sites if site.weight for run in _runs(site, plan)]
    packed = sum(run.scheme.weight.storage_bytes(run.rows, inputs) for run, inputs in runs)
    norms, rotary = 3 * 128 * 4, 2 * 64 * 16 * 4
    data = (artifact.folder / "weights.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert len(data) == 8 + header + packed + norms + rotary


def test_the_artifact_keeps_the_plan_and_names_its_schemes(compiled: tuple[Program, Plan, Artifact]) -> None:
    _, plan, artifact = compiled
    assert (artifact.folder / "plan.json").read_text() == plan.to_json()
    assert "u4g32a8+c3g64a8 x1" in artifact.manifest.scheme["linear"]
    assert artifact.manifest.scheme["table"] == "u8g32a8+c6g64a8 x1"


def test_float_activations_leave_hardly_an_error(tmp_path: Path) -> None:
    floats = {site: text.replace("a8", "a16") for site, text in SCHEMES.items()}
    model, program, plan = _planned(floats, cache_bits=32)
    session = load(_compile(model, plan, tmp_path).folder)
    ids = np.random.default_rng(7).integers(0, SHAPE.vocab, 45)
    expected = Interpreter(_dequantized(program, plan).graph).logits(ids)
    limit = FLOAT_ACTIVATIONS * expected.std()
    np.testing.assert_allclose(session.logits(ids), expected, rtol=0, atol=limit)
    session.reset()
    session.prefill(ids[:44])
    np.testing.assert_allclose(session.decode(int(ids[44])), expected[44], rtol=0, atol=limit)


def test_a_run_without_a_kernel_is_named(tmp_path: Path) -> None:
    model, _, plan = _planned({"layer.0.mlp.2": "u4g32a8:64+u4g128a8:64"}, cache_bits=16)
    with pytest.raises(UnsupportedError) as caught:
        _compile(model, plan, tmp_path)
    text = str(caught.value)
    assert "layer.0.mlp.2 [128 x 192] u4g32a8:64+u4g128a8:64: groups of 128 do not divide 192 inputs" in text
