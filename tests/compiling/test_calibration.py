"""Calibration of a compilation: which text, what is kept, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitwright.compiling import calibration
from bitwright.compiling.calibration import calibrated, text_windows
from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options, make_options
from tests.canonical_model import Shape, decoder


def word_tokenizer() -> bytes:
    """Words w0 ... w100 are the ids 0 ... 100."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return str(tokenizer.to_str()).encode()


@pytest.fixture
def model() -> ImportedModel:
    return replace(decoder(Shape(layers=1)), tokenizer_json=word_tokenizer())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(" ".join(f"w{i % 101}" for i in range(400)))
    return path


def test_round_to_nearest_needs_no_calibration(model: ImportedModel) -> None:
    with calibrated(model, Options(), lambda _: None) as moments:
        assert moments is None


def test_a_text_is_cut_into_windows_of_the_models_tokens(model: ImportedModel, text: Path) -> None:
    windows = text_windows(model, text)
    np.testing.assert_array_equal(windows.reshape(-1), np.arange(4 * 96) % 101)  # the model has 96 positions
    assert windows.shape == (4, 96)


def test_what_is_found_is_kept_where_it_is_asked_for(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    told: list[str] = []
    options = Options(quantizer="auto", calibration=text, calibration_cache=tmp_path / "cache")
    with calibrated(model, options, told.append) as moments:
        assert moments is not None and moments.tokens == 4 * 96
        first = moments.digest
    assert told == [f"calibrate: window {i} of 4" for i in range(1, 5)]
    told.clear()
    with calibrated(model, options, told.append) as moments:
        assert moments is not None and moments.digest == first
        assert moments.of("table") is not None
    assert not told


def test_without_a_text_the_model_samples_one_and_remembers_it(
    model: ImportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SAMPLED_WINDOWS", 2)
    monkeypatch.setattr(calibration, "SAMPLED_LENGTH", 24)
    options = Options(quantizer="gptq", calibration_cache=tmp_path)
    told: list[str] = []
    with calibrated(model, options, told.append) as moments:
        assert moments is not None and moments.tokens == 48
        first = moments.digest
    assert told[:2] == ["sample a text: window 1 of 2", "sample a text: window 2 of 2"]
    told.clear()
    with calibrated(model, options, told.append) as moments:
        assert moments is not None and moments.digest == first
    assert not told


def test_without_a_cache_nothing_is_left(
    model: ImportedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with calibrated(model, Options(quantizer="clip", calibration=text), lambda _: None) as moments:
        assert moments is not None and list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_texts_that_cannot_be_used_are_refused(model: ImportedModel, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("w1 w2")
    with pytest.raises(InputError, match="the calibration text has 2 tokens") as caught:
        text_windows(model, short)
    assert caught.value.where == str(short)
    with pytest.raises(InputError, match="the calibration text cannot be read"):
        text_windows(model, tmp_path / "absent")
    short.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="the calibration text cannot be read"):
        text_windows(model, short)
    with pytest.raises(InputError, match="the model has no tokenizer"):
        text_windows(replace(model, tokenizer_json=None), short)
    with pytest.raises(InputError, match="an encoder cannot sample a text"):
        text_windows(replace(model, kind="encoder"), None)


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'gptqq' is not a quantizer") as caught:
        make_options(quantizer="gptqq")
    assert caught.value.limit == "rtn, clip, gptq, auto"
    with pytest.raises(UsageError, match="round-to-nearest does not calibrate") as caught:
        make_options(calibration=tmp_path / "text")
    assert caught.value.where == "--calibration"
    assert "quantizer auto" in make_options(quantizer="auto").describe()


def test_tokens_are_weighed_when_asked_for_and_kept_apart(model: ImportedModel, text: Path, tmp_path: Path) -> None:
    plain = Options(quantizer="auto", calibration=text, calibration_cache=tmp_path / "cache")
    found = []
    for options in (plain, replace(plain, weigh_tokens=True)):
        with calibrated(model, options, lambda _: None) as moments:
            assert moments is not None
            found.append((moments.digest, moments.of("layers.0.down.weight.T")))
    assert found[0][0] != found[1][0]
    assert found[0][1] is not None and found[1][1] is not None
    assert np.abs(found[0][1] - found[1][1]).max() > 1e-3 * np.abs(found[0][1]).max()


def test_an_encoders_tokens_cannot_be_weighed(model: ImportedModel, text: Path) -> None:
    options = Options(quantizer="auto", calibration=text, weigh_tokens=True)
    with (
        pytest.raises(UnsupportedError, match="which an encoder has not"),
        calibrated(replace(model, kind="encoder"), options, lambda _: None),
    ):
        pass
    with pytest.raises(UsageError, match="round-to-nearest does not calibrate") as caught:
        make_options(weigh_tokens=True)
    assert caught.value.where == "--weigh-tokens"
