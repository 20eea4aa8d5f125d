"""Profiles of equalised weights: scored, kept, measured and compiled as equalised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bitwright import pipeline
from bitwright.allocation import Budgets
from bitwright.budgets.budgeted import budgeted
from bitwright.budgets.correction import Measurer
from bitwright.errors import InputError, UsageError
from bitwright.frontend.model import ImportedModel
from bitwright.options import make_options
from bitwright.scheme import LinearScheme
from bitwright.sensitivity import Profile
from tests.canonical_model import Shape, decoder
from tests.compiling.profiles import profiled
from tests.compiling.test_calibration import word_tokenizer


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    """With channels of very different sizes between up and down, and logits that leave doubt."""
    made = replace(decoder(Shape(layers=1, width=64, heads=2, hidden=128)), tokenizer_json=word_tokenizer())
    values = made.graph.graph.initializers
    sizes = np.exp(np.random.default_rng(5).standard_normal(128)).astype(np.float32)
    for name, factor in (("layers.0.up.weight", sizes), ("layers.0.down.weight", 1 / sizes[:, None]), ("norm", 0.1)):
        values[name].const_value = ir.tensor((values[name].const_value.numpy() * factor).astype(np.float32))  # type: ignore[union-attr]
    return made


@pytest.fixture(scope="module")
def plain(model: ImportedModel, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profiled(model, tmp_path_factory.mktemp("plain"), text, equalise=False)


@pytest.fixture(scope="module")
def equal(model: ImportedModel, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profiled(model, tmp_path_factory.mktemp("equal"), text, equalise=True)


def test_scores_and_measured_divergence_fall(model: ImportedModel, plain: Profile, equal: Profile) -> None:
    assert equal.header.equalised and equal.header.weighed and not plain.header.equalised
    schemes = {site.name: LinearScheme.parse("u3g32a8") for site in plain.header.sites if site.weight}
    scores, measured = [], []
    for profile in (plain, equal):
        scores.append(sum(profile.scores(name).weights["u3g32"].sum() for name in schemes))
        measured.append(Measurer(profile, lambda _: None, model).held_out.divergence(schemes))
    assert scores[1] < 0.9 * scores[0]
    assert measured[1] < 0.9 * measured[0]


def test_a_budget_is_compiled_from_the_codes_that_were_kept(
    model: ImportedModel, equal: Profile, text: Path, tmp_path: Path
) -> None:
    options = make_options(quantizer="gptq", calibration=text, equalise=True, weigh_tokens=True)
    chosen = budgeted(model, equal.folder, Budgets(avg_bits=8.0), options, 0, 1, lambda _: None)
    kept = pipeline.compile_model(model, tmp_path / "kept", chosen)
    anew = pipeline.compile_model(model, tmp_path / "anew", replace(chosen, codes=None, calibration_cache=None))
    assert kept.manifest.digests["equalisation"] == equal.header.equalised
    weights = [(artifact.folder / "weights.safetensors").read_bytes() for artifact in (kept, anew)]
    assert weights[0] == weights[1]


def test_codes_of_other_weights_are_refused(
    model: ImportedModel, plain: Profile, equal: Profile, text: Path, tmp_path: Path
) -> None:
    options = make_options(quantizer="gptq", calibration=text)
    for profile, equalise, remedy in ((plain, True, "leave --equalise out"), (equal, False, "use --equalise")):
        wrong = replace(options, equalise=equalise, codes=profile.folder / "codes")
        with pytest.raises(UsageError, match="not those of the weights") as caught:
            pipeline.compile_model(model, tmp_path / "out", wrong)
        assert remedy in str(caught.value)


def test_a_profile_is_not_finished_otherwise_than_it_was_begun(
    model: ImportedModel, plain: Profile, text: Path
) -> None:
    options = make_options(quantizer="gptq", calibration=text, equalise=True)
    with pytest.raises(InputError, match="profile of something else"):
        budgeted(model, plain.folder, Budgets(avg_bits=8.0), options, 0, 1, lambda _: None)
