"""Reconstruction of a compilation: it lowers every block's error, keeps every contract of codes, never makes worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright import load, pipeline
from bitwright.compiling import trainable
from bitwright.compiling.quantization import quantization
from bitwright.compiling.reconstruction import Rebuilt, rebuilt
from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options, make_options
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.passes.quantizers.sites import SiteQuantizers
from bitwright.plan import Plan
from bitwright.program import Program
from bitwright.runs import runs_of
from bitwright.scheme import LinearScheme
from tests import unusual_models
from tests.canonical_model import Shape, decoder
from tests.compiling.test_calibration import word_tokenizer
from tests.compiling.training import MIXED, planned

torch = pytest.importorskip("torch")

STEPS = 24


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    return replace(decoder(), tokenizer_json=word_tokenizer())


def run(
    model: ImportedModel, options: Options, site: str | None = None, told: list[str] | None = None
) -> tuple[Program, Plan, Rebuilt]:
    program, plan = planned(model, options, site)
    tell = (lambda _: None) if told is None else told.append
    return program, plan, rebuilt(model, program, plan, options, SiteQuantizers(), tell)


def errors(told: list[str]) -> list[tuple[float, float]]:
    """Before and after, of each block."""
    found = [line.split("error ")[1].split(" -> ") for line in told if " error " in line]
    return [(float(before), float(after)) for before, after in found]


def assert_same(first: Rebuilt, second: Rebuilt) -> None:
    assert set(first.matrices) == set(second.matrices)
    for name, runs in first.matrices.items():
        for one, other in zip(runs, second.matrices[name], strict=True):
            np.testing.assert_array_equal(one.codes, other.codes)
            np.testing.assert_array_equal(one.scales, other.scales)


@pytest.fixture(scope="module")
def outcome(model: ImportedModel, text: Path) -> tuple[Program, Plan, Rebuilt, list[str]]:
    told: list[str] = []
    options = make_options(scheme="u2g32za8", table="u4g32a8", reconstruct=STEPS, calibration=text)
    return *run(model, options, MIXED, told), told


def test_the_error_of_every_block_falls(outcome: tuple[Program, Plan, Rebuilt, list[str]]) -> None:
    _, _, result, told = outcome
    assert [line.split(",")[0] for line in told] == ["reconstruct: block 1 of 2", "reconstruct: block 2 of 2"]
    assert all(0 < after < 0.8 * before for before, after in errors(told)), told
    assert result.after < 0.8 * result.before
    assert (result.trained, result.blocks) == (2, 2)


def test_codes_stay_what_their_schemes_allow(outcome: tuple[Program, Plan, Rebuilt, list[str]]) -> None:
    program, plan, result, _ = outcome
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


def test_codes_are_trained_beside_rows_that_stay_floats(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    mixed = "f16:64+u2g32a8:96"
    options = make_options(scheme="u2g32a8", reconstruct=8, calibration=text, calibration_cache=tmp_path)
    program, plan, result = run(model, options, mixed)
    name = next(s.weight for s in program.sites if s.weight and str(plan.schemes[s.name]) == mixed)
    weights = np.asarray(program.parameters[name].load(), np.float32)
    begun = SiteQuantizers()(program.parameters[name])(weights[64:], LinearScheme.parse("u2g32a8").weight, 64)
    floats, trained = result.matrices[name]
    np.testing.assert_array_equal(floats, weights[:64].astype(np.float16).astype(np.float32))
    assert isinstance(trained, QuantizedMatrix) and not np.array_equal(trained.scales, begun.scales)
    _, _, kept = run(model, options, mixed)
    np.testing.assert_array_equal(kept.matrices[name][0], floats)
    np.testing.assert_array_equal(kept.matrices[name][1].codes, trained.codes)


def test_the_table_is_left_alone(outcome: tuple[Program, Plan, Rebuilt, list[str]]) -> None:
    program, plan, result, _ = outcome
    table = next(site for site in program.sites if site.kind == "table")
    weights = np.asarray(program.parameters[table.weight].load(), np.float32)
    nearest = SiteQuantizers()(program.parameters[table.weight])(weights, plan.schemes["table"].weight, 0)  # type: ignore[union-attr]
    np.testing.assert_array_equal(result.matrices[table.weight][0].codes, nearest.codes)
    np.testing.assert_array_equal(result.matrices[table.weight][0].scales, nearest.scales)


def test_the_same_again_gives_the_same_codes(
    model: ImportedModel, text: Path, outcome: tuple[Program, Plan, Rebuilt, list[str]]
) -> None:
    options = make_options(scheme="u2g32za8", table="u4g32a8", reconstruct=STEPS, calibration=text)
    _, _, again = run(model, options, MIXED)
    assert again.digest == outcome[2].digest
    assert_same(again, outcome[2])


@pytest.mark.parametrize("scheme", ["u2rowa16", "u3g64za8", "u8g32a8", "c2g32a8"])
@pytest.mark.parametrize("reach", [0.05, 40.0])
def test_no_block_is_worse_than_it_began(
    scheme: str, reach: float, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With absurd steps training ruins blocks: they keep the codes they began with."""
    monkeypatch.setattr("bitwright.frontend.reconstruct.train.SCALE_REACH", reach)
    model = replace(decoder(Shape(width=128, hidden=192, heads=4)), tokenizer_json=word_tokenizer())
    told: list[str] = []
    program, plan, result = run(
        model, make_options(scheme=scheme, table="f32", reconstruct=8, calibration=text), told=told
    )
    assert len(errors(told)) == 2
    assert all(after <= before for before, after in errors(told))
    if reach < 1:
        return
    assert all(after == before for before, after in errors(told))
    for name, matrices in result.matrices.items():
        weights = np.asarray(program.parameters[name].load(), np.float32)
        nearest = SiteQuantizers()(program.parameters[name])(weights, weight_scheme(plan, program, name), 0)
        np.testing.assert_array_equal(matrices[0].codes, nearest.codes)


def weight_scheme(plan: Plan, program: Program, weight: str) -> Any:
    name = next(site.name for site in program.sites if site.weight == weight)
    scheme: Any = plan.schemes[name]
    return scheme.weight


def test_the_artifact_computes_what_was_trained(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    """Q, K and V, and gate and up, are stacked in the artifact: their codes must have stayed with their rows."""
    options = make_options(scheme="u3g32a16", kv_bits=32, reconstruct=STEPS, calibration=text)
    program, plan, result = run(model, options)
    artifact = pipeline.compile_model(model, tmp_path / "out", options)
    assert artifact.manifest.digests["reconstruction"] == result.digest
    report = (artifact.folder / "report.md").read_text()
    assert f"2 of 2 blocks reconstructed in {STEPS} steps each: mean error" in report
    assert f"{result.before:.4f} before, {result.after:.4f} after" in report
    interpreter = Interpreter(model.graph)
    ids = np.arange(40) % 101
    plain = interpreter.logits(ids)
    for site in (site for site in program.sites if site.weight):
        scheme: Any = plan.schemes[site.name]
        matrix = torch.from_numpy(result.matrices[site.weight][0].dequantize(scheme.weight))
        transposed = site.weight.endswith(".T")
        interpreter.weights[site.weight.removesuffix(".T")] = matrix.T if transposed else matrix
    exact = interpreter.logits(ids)
    found = load(artifact.folder).logits(ids)
    assert np.abs(found - exact).max() < 1e-3 * np.abs(exact).max()
    assert np.abs(plain - exact).max() > 0.05 * np.abs(exact).max()


def test_distillation_begins_with_what_was_reconstructed(
    model: ImportedModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.frontend.distill.train.CODE_RATE", 0.0)
    monkeypatch.setattr("bitwright.frontend.distill.train.SCALE_RATE", 0.0)
    both = make_options(scheme="u2g32a8", reconstruct=STEPS, distill=2, calibration=text)
    program, plan, result = run(model, both)
    coding = quantization(model, program, plan, both, None, lambda _: None)
    for name, runs in result.matrices.items():
        weights = np.asarray(program.parameters[name].load(), np.float32)
        made = coding.quantizer_of(program.parameters[name])(weights, weight_scheme(plan, program, name), 0)
        np.testing.assert_array_equal(made.codes, runs[0].codes)
        np.testing.assert_array_equal(made.scales, runs[0].scales)
    assert coding.digests["reconstruction"] == result.digest and "distillation" in coding.digests
    assert "2 of 2 blocks reconstructed" in coding.description and "Then trained for 2 steps" in coding.description
    assert "steps of reconstruction per block and 2 steps of distillation" in both.describe()


def test_an_interrupted_reconstruction_goes_on_behind_the_last_block(
    model: ImportedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(scheme="u2g32a8", reconstruct=STEPS, calibration=text, calibration_cache=tmp_path / "kept")
    program, plan = planned(model, options, MIXED)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuilt(model, program, plan, options, SiteQuantizers(), interrupt)
    trained: list[str] = []
    train = "bitwright.frontend.reconstruct.train.Streams.train"
    from bitwright.frontend.reconstruct.train import Streams

    original = Streams.train

    def counted(self: Streams, block: Any, *arguments: Any) -> Any:
        trained.append(block.output)
        return original(self, block, *arguments)

    monkeypatch.setattr(train, counted)
    resumed = rebuilt(model, program, plan, options, SiteQuantizers(), lambda _: None)
    assert len(trained) == 1
    assert_same(resumed, run(model, replace(options, calibration_cache=None), MIXED)[2])
    trained.clear()
    again = rebuilt(model, program, plan, options, SiteQuantizers(), lambda _: None)
    assert not trained and (again.digest, again.after) == (resumed.digest, resumed.after)
    assert_same(again, resumed)


def test_a_damaged_block_is_named(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    options = make_options(scheme="u2g32a8", reconstruct=2, calibration=text, calibration_cache=tmp_path / "kept")
    run(model, options)
    for block in (tmp_path / "kept").glob("reconstructing-*.safetensors"):
        block.write_bytes(block.read_bytes()[:1000])
    with pytest.raises(InputError, match="interrupted reconstruction"):
        run(model, options)


def test_blocks_that_time_does_not_suffice_for_stay_as_they_were(model: ImportedModel, text: Path) -> None:
    told: list[str] = []
    options = make_options(scheme="u2g32a8", reconstruct=10**6, stage_minutes=1e-6, calibration=text)
    _, _, result = run(model, options, told=told)
    assert told == ["reconstruct: time is over before block 1 of 2"]
    assert (result.trained, result.before, result.after) == (0, 0.0, 0.0)


def test_a_stage_that_ends_by_time_keeps_what_it_has(model: ImportedModel, text: Path) -> None:
    told: list[str] = []
    options = make_options(scheme="u2g32a8", reconstruct=10**6, stage_minutes=0.05, calibration=text)
    _, _, result = run(model, options, told=told)
    assert result.trained == 2 and all(after < before for before, after in errors(told))


def test_an_encoder_is_reconstructed_too(text: Path) -> None:
    encoder = replace(unusual_models.encoder(), tokenizer_json=word_tokenizer())
    told: list[str] = []
    run(encoder, make_options(scheme="u2g32a8", reconstruct=STEPS, calibration=text), told=told)
    assert told and all(after < before for before, after in errors(told))


@pytest.mark.parametrize("made", [unusual_models.shared_weights, unusual_models.looped_layer])
def test_matrices_of_several_blocks_are_trained_in_the_first(
    made: Callable[[], ImportedModel], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the blocks behind it read what was made of them."""
    from bitwright.frontend.reconstruct.train import Streams

    model = replace(made(), tokenizer_json=word_tokenizer())
    streams: list[Streams] = []
    begin = Streams.begin

    def begun(self: Streams, *arguments: Any) -> None:
        streams.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(Streams, "begin", begun)
    program, plan, result = run(model, make_options(scheme="u2g32a8", reconstruct=STEPS, calibration=text))
    interpreter = Interpreter(model.graph)
    for name, runs in result.matrices.items():
        matrix = runs[0].dequantize(weight_scheme(plan, program, name))
        transposed = name.endswith(".T")
        interpreter.weights[name.removesuffix(".T")] = torch.from_numpy(matrix.T if transposed else matrix)
    (stream,) = streams
    ((place, found),) = stream._quantized[0].items()
    exact = interpreter.run(stream._feeds(0), (place,))[place]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_a_model_without_quantized_layers_is_refused(model: ImportedModel, text: Path) -> None:
    with pytest.raises(UnsupportedError, match="no linear layer"):
        run(model, make_options(scheme="f32", table="u4g32a8", reconstruct=2, calibration=text))


def test_it_needs_a_text_of_two_windows(model: ImportedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reconstruction needs a text"):
        make_options(reconstruct=10)
    (tmp_path / "text").write_text("w1 " * 90)
    with pytest.raises(UsageError, match="too short"):
        run(model, make_options(reconstruct=10, calibration=tmp_path / "text"))


def test_numbers_that_make_no_sense_are_refused(text: Path) -> None:
    with pytest.raises(UsageError, match="-1 steps of reconstruction"):
        make_options(reconstruct=-1)
    with pytest.raises(UsageError, match="0 minutes"):
        make_options(reconstruct=1, calibration=text, stage_minutes=0)
    with pytest.raises(UsageError, match="no stage"):
        make_options(stage_minutes=5)


def test_too_little_memory_is_said_before_anything_is_computed(
    model: ImportedModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "BYTES_PER_WEIGHT", 1 << 50)
    with pytest.raises(UsageError, match="memory"):
        run(model, make_options(reconstruct=10, calibration=text))
