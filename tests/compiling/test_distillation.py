"""Distillation of a compilation: it lowers the divergence, keeps every contract of codes, and never makes worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bitwright import load, pipeline
from bitwright.compiling import trainable
from bitwright.compiling.calibration import LENGTH, text_windows
from bitwright.compiling.distillation import Distilled, distilled
from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options, make_options
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.passes.quantizers.sites import SiteQuantizers
from bitwright.plan import Plan
from bitwright.program import Program
from bitwright.runs import parse_weights, runs_of
from bitwright.runtime.artifact import Artifact
from tests.canonical_model import Shape, decoder
from tests.compiling.test_calibration import word_tokenizer
from tests.compiling.training import MIXED, planned

STEPS = 30
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    made = replace(decoder(Shape(layers=1)), tokenizer_json=word_tokenizer())
    norm = made.graph.graph.initializers["norm"]  # random logits are so far apart that nothing changes the likeliest
    norm.const_value = ir.tensor(np.float32(0.1) * norm.const_value.numpy())  # type: ignore[union-attr]
    return made


def run(model: ImportedModel, options: Options, site: str | None = None) -> tuple[Program, Plan, Distilled]:
    program, plan = planned(model, options, site)
    return program, plan, distilled(model, program, plan, options, SiteQuantizers(), lambda _: None)


@pytest.fixture(scope="module")
def outcome(model: ImportedModel, text: Path) -> tuple[Program, Plan, Distilled]:
    return run(model, make_options(scheme="u2g32za8", distill=STEPS, calibration=text), MIXED)


def test_the_divergence_of_held_out_text_falls(outcome: tuple[Program, Plan, Distilled]) -> None:
    result = outcome[2]
    assert 0 < result.after < 0.95 * result.before


def test_codes_stay_what_their_schemes_allow(outcome: tuple[Program, Plan, Distilled]) -> None:
    program, plan, result = outcome
    sites = {site.weight: site for site in program.sites if site.weight}
    assert set(result.matrices) == set(sites)
    for name, matrices in result.matrices.items():
        scheme: Any = plan.schemes[sites[name].name]
        for matrix, part in zip(matrices, runs_of(scheme, sites[name].shape[0]), strict=True):
            weight = part.scheme.weight
            assert matrix.codes.shape == (part.rows, sites[name].shape[1])
            assert matrix.codes.max() < 2**weight.bits
            assert matrix.scales.dtype == np.float16 and np.isfinite(matrix.scales).all()
            assert (matrix.zeros is None) == weight.symmetric
            assert (matrix.codebook is not None) == weight.is_codebook


def test_the_same_again_gives_the_same_codes(
    model: ImportedModel, text: Path, outcome: tuple[Program, Plan, Distilled]
) -> None:
    _, _, again = run(model, make_options(scheme="u2g32za8", distill=STEPS, calibration=text), MIXED)
    assert again.digest == outcome[2].digest and again.after == outcome[2].after
    for name, matrices in outcome[2].matrices.items():
        for first, second in zip(matrices, again.matrices[name], strict=True):
            np.testing.assert_array_equal(first.codes, second.codes)
            np.testing.assert_array_equal(first.scales, second.scales)


def test_training_that_makes_it_worse_is_undone(
    model: ImportedModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.frontend.distill.train.SCALE_RATE", 30.0)
    program, plan, result = run(model, make_options(scheme="u4g32a8", distill=12, calibration=text))
    assert result.after == result.before
    for site in (site for site in program.sites if site.weight):
        weights = np.asarray(program.parameters[site.weight].load(), np.float32)
        weight = runs_of(plan.schemes[site.name], len(weights))[0].scheme.weight  # type: ignore[arg-type]
        nearest = SiteQuantizers()(program.parameters[site.weight])(weights, weight, 0)
        np.testing.assert_array_equal(result.matrices[site.weight][0].codes, nearest.codes)


def test_the_artifact_computes_what_was_trained(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    """Q, K and V, and gate and up, are stacked in the artifact: their codes must have stayed with their rows."""
    options = make_options(scheme="u3g32a16", kv_bits=32, distill=STEPS, calibration=text)
    program, plan, result = run(model, options)
    artifact = pipeline.compile_model(model, tmp_path / "out", options)
    assert artifact.manifest.digests["distillation"] == result.digest
    assert f"{result.after:.4f} after" in (artifact.folder / "report.md").read_text()
    assert_computes(model, program, plan, result, artifact)


def assert_computes(model: ImportedModel, program: Program, plan: Plan, result: Distilled, artifact: Artifact) -> None:
    """The artifact has the logits of the trained matrices, which are not those of the float model."""
    import torch

    interpreter = Interpreter(model.graph)
    ids = np.arange(40) % 101
    plain = interpreter.logits(ids)
    for site in (site for site in program.sites if site.weight):
        scheme: Any = plan.schemes[site.name]
        parts = zip(result.matrices[site.weight], runs_of(scheme, site.shape[0]), strict=True)
        matrix = torch.from_numpy(
            np.concatenate(
                [run.dequantize(part.scheme.weight) if isinstance(run, QuantizedMatrix) else run for run, part in parts]
            )
        )
        transposed = site.weight.endswith(".T")
        interpreter.weights[site.weight.removesuffix(".T")] = matrix.T if transposed else matrix
    exact = interpreter.logits(ids)
    found = load(artifact.folder).logits(ids)
    assert np.abs(found - exact).max() < 1e-3 * np.abs(exact).max()
    assert np.abs(plain - exact).max() > 0.05 * np.abs(exact).max()


def test_quantized_runs_are_trained_beside_float_ones(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    """In a table whose dearest rows stay floats, and in Q, whose codes lie with those of K and V in the artifact."""
    options = make_options(scheme="u3g32a16", kv_bits=32, distill=STEPS, calibration=text)
    program, plan = planned(model, options)
    mixed = {"table": "f16:64+u2g32a16:37", "layer.0.q": "f16:64+u2g32a16:32"}
    plan = replace(plan, schemes={**plan.schemes, **{name: parse_weights(runs) for name, runs in mixed.items()}})
    result = distilled(model, program, plan, options, SiteQuantizers(), lambda _: None)
    assert result.after < 0.95 * result.before
    weights = {site.name: site.weight for site in program.sites if site.weight}
    assert set(result.matrices) == set(weights.values())
    for name in mixed:
        floats, trained = result.matrices[weights[name]]
        rows = np.asarray(program.parameters[weights[name]].load(), np.float32)
        np.testing.assert_array_equal(floats, rows[:64].astype(np.float16).astype(np.float32))
        begun = SiteQuantizers()(program.parameters[weights[name]])(rows[64:], parse_weights("u2g32a16").weight, 64)
        assert isinstance(trained, QuantizedMatrix) and not np.array_equal(trained.codes, begun.codes)
    artifact = pipeline.compile_model(model, tmp_path / "out", replace(options, plan=plan))
    assert artifact.manifest.digests["distillation"] == result.digest
    assert_computes(model, program, plan, result, artifact)


def test_an_interrupted_training_goes_on(
    model: ImportedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.frontend.distill.train.KEEP_EVERY", 5)
    options = make_options(
        scheme="u2g32a8", quantizer="auto", distill=STEPS, calibration=text, calibration_cache=tmp_path / "kept"
    )
    program, plan = planned(model, options)
    told: list[str] = []

    def interrupt(line: str) -> None:
        told.append(line)
        if "step 12 " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distilled(model, program, plan, options, SiteQuantizers(), interrupt)
    told.clear()
    resumed = distilled(model, program, plan, options, SiteQuantizers(), told.append)
    assert [line.split()[2] for line in told if "step" in line] == [str(n) for n in range(11, STEPS + 1)]
    _, _, whole = run(model, replace(options, calibration_cache=None))
    assert resumed.after == whole.after
    for name, matrices in whole.matrices.items():
        np.testing.assert_array_equal(resumed.matrices[name][0].codes, matrices[0].codes)
    told.clear()
    assert distilled(model, program, plan, options, SiteQuantizers(), told.append).after == whole.after
    assert not any("step" in line for line in told)


def test_a_training_that_ends_by_time_keeps_what_it_has_and_is_over(
    model: ImportedModel, text: Path, tmp_path: Path
) -> None:
    options = make_options(
        scheme="u2g32a8", distill=10**6, stage_minutes=0.05, calibration=text, calibration_cache=tmp_path / "kept"
    )
    program, plan, result = run(model, options)
    assert result.after < result.before
    told: list[str] = []
    again = distilled(model, program, plan, options, SiteQuantizers(), told.append)
    assert again.after == result.after and not any("step" in line for line in told)


def test_a_damaged_state_is_named(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    options = make_options(
        scheme="u2g32a8", quantizer="auto", distill=2, calibration=text, calibration_cache=tmp_path / "kept"
    )
    run(model, options)
    (state,) = (tmp_path / "kept").glob("distilling-*.pt")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="interrupted distillation"):
        run(model, options)


@pytest.mark.parametrize(("total", "most"), [(321, 45), (321, 1000), (60, 20), (40, 10), (16, 30), (2, 5)])
def test_what_is_held_out_was_neither_trained_nor_calibrated_on(
    model: ImportedModel, tmp_path: Path, total: int, most: int
) -> None:
    """A quantizer's error is smaller on what it calibrated on: training that gains elsewhere was undone there."""
    length = min(LENGTH, model.context)
    (tmp_path / "text").write_text(" ".join(f"w{i}" for i in RANDOM.integers(0, 101, total * length)))
    trained, held_out = (
        {window.tobytes() for window in part}
        for part in trainable.training_windows(model, tmp_path / "text", most, "--distill")
    )
    read = {window.tobytes() for window in text_windows(model, tmp_path / "text")}
    assert 1 <= len(held_out) <= trainable.HELD_OUT and 1 <= len(trained) <= most
    assert not held_out & trained
    assert not held_out & read or total <= len(read)
    assert not trained & read or most > total - len(read) - total // trainable.HELD_OUT_SHARE
    assert len(held_out) == trainable.HELD_OUT or total < 100


def test_it_needs_a_text(model: ImportedModel) -> None:
    with pytest.raises(UsageError, match="needs a text"):
        make_options(distill=10)
    with pytest.raises(InputError, match="cannot be read"):
        run(model, make_options(distill=10, calibration="no-such-text"))


def test_a_text_of_one_window_is_refused(model: ImportedModel, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("w1 " * 90)
    with pytest.raises(UsageError, match="too short"):
        run(model, make_options(distill=10, calibration=tmp_path / "text"))


def test_negative_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 steps"):
        make_options(distill=-1)


def test_too_little_memory_is_said_before_anything_is_computed(
    model: ImportedModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "BYTES_PER_WEIGHT", 1 << 50)
    with pytest.raises(UsageError, match="memory"):
        run(model, make_options(distill=10, calibration=text))


def test_an_encoder_is_refused(model: ImportedModel, text: Path) -> None:
    options = make_options(distill=10, calibration=text)
    program, plan = planned(model, options)
    with pytest.raises(UnsupportedError, match="only decoders"):
        distilled(replace(model, kind="encoder"), program, plan, options, SiteQuantizers(), lambda _: None)
