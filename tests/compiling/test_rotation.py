"""--rotate: artifacts of rotated models compute the model's logits; calibration, profiles and training take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bitwright
from bitwright import pipeline
from bitwright.allocation import Budgets
from bitwright.budgets.budgeted import budgeted
from bitwright.budgets.correction import Measurer
from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.compiling.rotation import rotated
from bitwright.compiling.transforming import transformed
from bitwright.errors import InputError, UsageError
from bitwright.frontend.calibrate.collect import collect
from bitwright.frontend.calibrate.products import products
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.moments import MomentStore
from bitwright.options import make_options
from bitwright.rotated_parts import PARTS
from bitwright.scheme import LinearScheme
from bitwright.sensitivity import Profile
from tests.canonical_model import Shape, decoder
from tests.compiling.test_calibration import word_tokenizer

ALL = ",".join(PARTS)
IDS = np.arange(30) * 7 % 101


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    """With a few loud hidden channels, and logits that leave doubt."""
    made = replace(decoder(Shape(layers=1, width=64, heads=2, hidden=128)), tokenizer_json=word_tokenizer())
    values = made.graph.graph.initializers
    loud = np.where(np.arange(128) % 32 == 3, 8, 1).astype(np.float32)
    for name, factor in (("layers.0.down.weight", loud[:, None]), ("norm", np.float32(0.1))):
        values[name].const_value = ir.tensor((values[name].const_value.numpy() * factor).astype(np.float32))  # type: ignore[union-attr]
    return made


@pytest.mark.parametrize(("tied", "target"), [(True, "native"), (False, "native"), (True, "avx2")])
def test_a_float_artifact_computes_the_models_logits(tmp_path: Path, tied: bool, target: str) -> None:
    model = decoder(Shape(heads=4, kv_heads=2, head_dim=24, tied=tied))
    artifact = bitwright.compile(model, tmp_path / "out", scheme="f32", rotate=ALL, target=target)
    session, expected = bitwright.load(artifact.folder), Interpreter(model.graph).logits(IDS)
    largest = float(np.abs(expected).max())
    assert np.abs(session.logits(IDS) - expected).max() < 1e-5 * largest
    assert artifact.manifest.digests["rotation"] == rotated(model, PARTS).digest
    report = (artifact.folder / "report.md").read_text()
    assert "| rotate | residual " in report and "value 2, hidden 2 |" in report
    # Single tokens take other kernels than prompts, outside the VM.
    assert artifact.manifest.interface.step is not None
    session.reset()
    session.prefill(IDS[:-1])
    assert np.abs(session.decode(int(IDS[-1])) - expected[-1]).max() < 1e-5 * largest


@pytest.mark.parametrize("shape", [Shape(heads=4, kv_heads=2, head_dim=24), Shape(bias=True, tied=False)])
@pytest.mark.parametrize("equalise", [False, True])
def test_moments_are_those_of_the_rotated_model(tmp_path: Path, shape: Shape, equalise: bool) -> None:
    model = decoder(shape)
    windows = np.random.default_rng(0).integers(0, model.vocab, (3, 40))
    before = collect(model, Interpreter(model.graph), windows, MomentStore(tmp_path, "a" * 64))
    ready = transformed(model, before, equalise=equalise, reorder=False, rotate=PARTS)
    after = collect(ready.model, Interpreter(ready.model.graph), windows, MomentStore(tmp_path, "b" * 64))
    assert ready.moments is not None
    for product in products(ready.model.graph):
        found, expected = ready.moments.of(product.weight), after.of(product.weight)
        assert found is not None and expected is not None
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * float(np.abs(expected).max()))


def test_rotations_make_loud_channels_cheaper(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    expected, errors = Interpreter(model.graph).logits(IDS), []
    for rotate in (None, "hidden"):
        artifact = bitwright.compile(
            model,
            tmp_path / str(rotate),
            scheme="u3rowa8",
            table="f32",
            quantizer="gptq",
            calibration=text,
            rotate=rotate,
        )
        errors.append(float(np.square(bitwright.load(artifact.folder).logits(IDS) - expected).mean()))
    assert errors[1] < 0.9 * errors[0]


def test_everything_works_on_top_of_rotations(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    options = make_options(
        scheme="u3g32a8", rotate=ALL, quantizer="gptq", calibration=text, equalise=True, weigh_tokens=True, distill=12
    )
    assert "equalised, rotated residual value hidden" in options.describe()
    artifact = pipeline.compile_model(model, tmp_path / "out", options)
    assert {"equalisation", "distillation", "calibration"} <= set(artifact.manifest.digests)
    report = (artifact.folder / "report.md").read_text()
    before, after = (float(report.split(word)[0].split()[-1]) for word in (" before,", " after."))
    assert after < before


@pytest.fixture(scope="module")
def profile(model: ImportedModel, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    folder = tmp_path_factory.mktemp("profile")
    wanted = ProfileOptions(
        schemes=("u3g32", "u6g32", "k16", "v16"),
        quantizer="gptq",
        calibration=text,
        rotate=PARTS,
        tokens=480,
        codes=folder / "codes",
    )
    return profile_model(model, folder, wanted)


def test_a_profile_scores_and_measures_the_rotated_model(model: ImportedModel, profile: Profile) -> None:
    assert profile.header.rotated == PARTS and Profile.header_of(profile.folder) == profile.header
    schemes = {site.name: LinearScheme.parse("u6g32a8") for site in profile.header.sites if site.weight}
    predicted = sum(profile.scores(name).linear(scheme).sum() for name, scheme in schemes.items())
    measured = Measurer(profile, lambda _: None, model).held_out.divergence(schemes)
    assert 0.3 < measured / predicted < 3


def test_a_plan_of_a_rotated_profile_is_compiled_with_the_same_rotations(
    model: ImportedModel, profile: Profile, text: Path, tmp_path: Path
) -> None:
    options = make_options(quantizer="gptq", calibration=text, rotate=ALL)
    chosen = budgeted(model, profile.folder, Budgets(avg_bits=8.0), options, 0, 1, lambda _: None)
    artifact = pipeline.compile_model(model, tmp_path / "out", chosen)
    expected = Interpreter(model.graph).logits(IDS)
    found = bitwright.load(artifact.folder).logits(IDS)
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    with pytest.raises(UsageError, match="not those of the weights") as caught:
        pipeline.compile_model(model, tmp_path / "other", replace(chosen, rotate=("value",)))
    assert "use --rotate residual,value,hidden" in str(caught.value)
    with pytest.raises(InputError, match="profile of something else"):
        budgeted(model, profile.folder, Budgets(avg_bits=8.0), replace(options, rotate=()), 0, 1, lambda _: None)


@pytest.mark.parametrize("text", ["keys", "", "residual,keys"])
def test_other_parts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be rotated[\s\S]*any of residual, value, hidden"):
        make_options(rotate=text)


def test_parts_are_named_once_and_in_order() -> None:
    assert make_options(rotate="hidden, residual,hidden").rotate == ("residual", "hidden")
