"""--equalise: the artifact is the same model with other weights, calibrated for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitwright.compiling.equalisation import equalised
from bitwright.errors import UnsupportedError, UsageError
from bitwright.frontend.calibrate.collect import collect
from bitwright.frontend.calibrate.products import products
from bitwright.frontend.interpreter import Interpreter
from bitwright.moments import Moments, MomentStore
from bitwright.options import make_options
from tests.canonical_model import Shape, decoder
from tests.compiling.test_calibration import word_tokenizer


def test_moments_are_those_of_the_equalised_model(tmp_path: Path) -> None:
    model = decoder(Shape(heads=4, kv_heads=2, head_dim=24))
    windows = np.random.default_rng(0).integers(0, model.vocab, (3, 40))
    before = collect(model, Interpreter(model.graph), windows, MomentStore(tmp_path, "a" * 64))
    result = equalised(model, before)
    assert result.places == 8 and result.model.digest == model.digest
    after = collect(result.model, Interpreter(result.model.graph), windows, MomentStore(tmp_path, "b" * 64))
    for product in products(model.graph):
        found, expected = result.moments.of(product.weight), after.of(product.weight)
        assert found is not None and expected is not None
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * float(np.abs(expected).max()))


def test_an_equalised_artifact_computes_the_models_logits(tmp_path: Path) -> None:
    import bitwright

    text = tmp_path / "text"
    text.write_text(" ".join(f"w{i * i % 101}" for i in range(400)))
    model = replace(decoder(Shape(layers=1)), tokenizer_json=word_tokenizer())
    artifact = bitwright.compile(
        model, tmp_path / "artifact", scheme="u8g32a16", quantizer="clip", calibration=text, equalise=True
    )
    assert len(artifact.manifest.digests["equalisation"]) == 64
    assert "| equalise | places 4 |" in (tmp_path / "artifact" / "report.md").read_text()
    ids = np.arange(30) * 7 % 101
    expected = Interpreter(model.graph).logits(ids)
    found = bitwright.load(tmp_path / "artifact").logits(ids)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_model_without_places_is_refused() -> None:
    model = decoder(Shape(layers=0))
    with pytest.raises(UnsupportedError, match="no factor can move"):
        equalised(replace(model, name="tiny"), Moments(MomentStore(Path("none"), "0" * 64), {}, 1))


def test_round_to_nearest_cannot_equalise() -> None:
    with pytest.raises(UsageError, match="round-to-nearest does not calibrate, which this needs"):
        make_options(equalise=True)
    assert "equalised" in make_options(equalise=True, quantizer="auto").describe()
