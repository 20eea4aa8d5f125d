"""Windowed evaluation against closed forms and a plain implementation, and the reference cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitwright.errors import InputError, InternalError, NumericalError, UsageError
from bitwright.runtime.divergence import log_softmax
from bitwright.runtime.evaluate import evaluate, position_ranges, score_windows, second_half, windows_of
from bitwright.runtime.reference_cache import ReferenceCache
from bitwright.runtime.rows import Logits

VOCAB = 11
CONTEXT = 8
EXACT = {"rel": 1e-12}
FLOAT16_CACHE = 1e-5
"""Nats per token that a float16 reference may move a KL by (stated in ``ReferenceCache``)."""

Array = npt.NDArray[Any]


class Model:
    """Logits that depend on a window's tokens only; counts its calls."""

    def __init__(self, seed: int, vocab: int = VOCAB, spread: float = 2.0) -> None:
        self.seed, self.vocab, self.spread, self.calls = seed, vocab, spread, 0

    def __call__(self, ids: Array) -> Array:
        self.calls += 1
        rng = np.random.default_rng([self.seed, *ids])
        return (self.spread * rng.standard_normal((len(ids), self.vocab))).astype(np.float32)


def tokens(count: int, vocab: int = VOCAB) -> Array:
    return np.random.default_rng(7).integers(0, vocab, count)


def probabilities(logits: Array) -> Array:
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(-1, keepdims=True)


def test_every_figure_equals_its_definition() -> None:
    text, model, reference = tokens(3 * CONTEXT + 5), Model(1), Model(2)
    full, half, kl, same = [], [], [], []
    for start in range(0, 3 * CONTEXT, CONTEXT):
        window = text[start : start + CONTEXT]
        p, q = probabilities(reference(window)), probabilities(model(window))
        for position in range(1, CONTEXT):
            loss = -np.log(q[position - 1, window[position]])
            full.append(loss)
            if position >= CONTEXT // 2:
                row = position - 1
                half.append(loss)
                kl.append(sum(p[row, v] * np.log(p[row, v] / q[row, v]) for v in range(VOCAB)))
                same.append(p[row].argmax() == q[row].argmax())
    result = evaluate(model, text, context=CONTEXT, reference=reference)
    assert result.perplexity == pytest.approx(np.exp(np.mean(full)), **EXACT)
    assert result.perplexity_second_half == pytest.approx(np.exp(np.mean(half)), **EXACT)
    assert result.divergence is not None
    assert result.divergence.mean == pytest.approx(np.mean(kl), **EXACT)
    assert result.divergence.p99 == pytest.approx(np.percentile(kl, 99), **EXACT)
    assert result.divergence.top1 == np.mean(same)
    assert (result.windows, result.context) == (3, CONTEXT)


def test_uniform_predictions_have_the_vocabulary_as_perplexity() -> None:
    result = evaluate(lambda ids: np.zeros((len(ids), VOCAB), np.float32), tokens(64), context=CONTEXT)
    assert result.perplexity == pytest.approx(VOCAB, **EXACT)
    assert result.perplexity_second_half == pytest.approx(VOCAB, **EXACT)
    assert result.divergence is None


def test_divergence_of_a_hot_reference_from_uniform_is_log_vocabulary() -> None:
    def certain(ids: Array) -> Array:
        return np.tile(np.where(np.arange(VOCAB) == 3, 1000.0, 0.0).astype(np.float32), (len(ids), 1))

    result = evaluate(
        lambda ids: np.zeros((len(ids), VOCAB), np.float32), tokens(64), context=CONTEXT, reference=certain
    )
    assert result.divergence is not None
    assert result.divergence.mean == pytest.approx(np.log(VOCAB), **EXACT)
    assert result.divergence.top1 == 0.0  # argmax of equal logits is the first


def test_second_half_scores_only_the_second_half() -> None:
    """Rows that predict positions 1 ... context / 2 - 1 are spoilt; what concerns the second half does not change."""
    clean, spoil = Model(1), slice(0, second_half(CONTEXT).start)

    def spoilt(ids: Array) -> Array:
        logits = clean(ids)
        logits[spoil] *= -5
        return logits

    a, b = (evaluate(m, tokens(64), context=CONTEXT, reference=clean) for m in (clean, spoilt))
    assert a.perplexity_second_half == b.perplexity_second_half
    assert a.divergence == b.divergence
    assert a.perplexity < b.perplexity


def test_last_row_of_a_window_predicts_nothing_in_it() -> None:
    clean = Model(1)

    def spoilt(ids: Array) -> Array:
        logits = clean(ids)
        logits[-1] = 1e6 * np.arange(VOCAB)
        return logits

    text = tokens(64)
    assert evaluate(spoilt, text, context=CONTEXT, reference=clean) == evaluate(
        clean, text, context=CONTEXT, reference=clean
    )


def test_a_model_does_not_diverge_from_itself_nor_from_shifted_logits() -> None:
    model = Model(1)
    result = evaluate(model, tokens(64), context=CONTEXT, reference=lambda ids: model(ids) + np.float32(64.0))
    assert result.divergence is not None
    assert result.divergence.top1 == 1.0
    assert 0 <= result.divergence.mean < 1e-10  # adding 64 rounds the logits themselves


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.runtime import evaluate as module

    text = tokens(4 * 32)
    whole = evaluate(Model(1), text, context=32, reference=Model(2))
    monkeypatch.setattr(module, "CHUNK", 3)
    assert evaluate(Model(1), text, context=32, reference=Model(2)) == whole


def test_windows_are_whole_in_order_and_limited() -> None:
    text = np.arange(30)
    np.testing.assert_array_equal(windows_of(text, 8), np.arange(24).reshape(3, 8))
    np.testing.assert_array_equal(windows_of(text, 8, 2), np.arange(16).reshape(2, 8))
    np.testing.assert_array_equal(windows_of(text, 8, 99), np.arange(24).reshape(3, 8))
    assert windows_of([1, 2, 3, 4], 4).dtype == np.int64


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(Model(1), tokens(30), context=CONTEXT, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_json_has_the_documented_keys() -> None:
    document = evaluate(Model(1), tokens(30), context=CONTEXT, reference=Model(2)).to_json()
    assert list(document) == ["perplexity", "perplexity_second_half", "kl", "top1", "windows", "context"]
    assert set(document["kl"]) == {"mean", "p99"}
    without = evaluate(Model(1), tokens(30), context=CONTEXT).to_json()
    assert without["kl"] is None and without["top1"] is None


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_log_softmax_never_overflows_and_sums_to_one(logits: Array) -> None:
    result = log_softmax(logits)
    assert not np.isnan(result).any()
    np.testing.assert_allclose(np.exp(result).sum(-1), 1.0, rtol=1e-12)


def test_inputs_are_left_as_they_were() -> None:
    logits = np.ones((CONTEXT, VOCAB))
    evaluate(lambda _: logits, tokens(CONTEXT), context=CONTEXT, reference=lambda _: logits)
    np.testing.assert_array_equal(logits, 1.0)


# Pieces and positions


def in_pieces(model: Model, size: int) -> Logits:
    def rows(ids: Array) -> Iterator[Array]:
        logits = model(ids)
        yield from (logits[start : start + size] for start in range(0, len(logits), size))

    return rows


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_pieces_of_logits_change_nothing(tmp_path: Path, size: int) -> None:
    text = tokens(4 * 16)
    whole = evaluate(Model(1), text, context=16, reference=Model(2))
    assert evaluate(in_pieces(Model(1), size), text, context=16, reference=in_pieces(Model(2), size)) == whole
    caches = [ReferenceCache(tmp_path / str(i), "d", m) for i, m in enumerate((Model(2), in_pieces(Model(2), size)))]
    found = [evaluate(Model(1), text, context=16, reference=cache) for cache in caches]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("context", "ranges"),
    [
        (16, [(1, 15)]),
        (254, [(1, 253)]),
        (512, [(1, 127), (128, 255), (256, 511)]),
        (300, [(1, 149), (150, 299)]),
        (8192, [(1, 127), (128, 255), (256, 511), (512, 1023), (1024, 2047), (2048, 4095), (4096, 8191)]),
    ],
)
def test_ranges_of_positions_double_and_cover_all(context: int, ranges: list[tuple[int, int]]) -> None:
    assert position_ranges(context) == ranges


def test_figures_by_position_equal_their_definition() -> None:
    context, text, model, reference = 512, tokens(2 * 512), Model(1), Model(2)
    scores = score_windows(model, windows_of(text, context), reference)
    for entry in scores.by_position():
        loss, kl, same = [], [], []
        for window in text.reshape(2, context):
            p, q = probabilities(reference(window)), probabilities(model(window))
            for position in range(entry.first, entry.last + 1):
                row = position - 1
                loss.append(-np.log(q[row, window[position]]))
                kl.append((p[row] * np.log(p[row] / q[row])).sum())
                same.append(p[row].argmax() == q[row].argmax())
        assert entry.perplexity == pytest.approx(np.exp(np.mean(loss)), **EXACT)
        assert entry.divergence is not None
        assert entry.divergence.mean == pytest.approx(np.mean(kl), rel=1e-9)
        assert entry.divergence.p99 == pytest.approx(np.percentile(kl, 99), rel=1e-9)
        assert entry.divergence.top1 == np.mean(same)
    assert scores.evaluation() == evaluate(model, text, context=context, reference=reference)


def test_positions_without_a_reference_have_no_divergence() -> None:
    entries = score_windows(Model(1), windows_of(tokens(16), 16)).by_position()
    assert [entry.to_json()["kl"] for entry in entries] == [None]


# Errors


def test_too_little_text_says_how_much_is_needed() -> None:
    with pytest.raises(InputError) as error:
        evaluate(Model(1), tokens(511), context=512)
    assert str(error.value) == (
        "the text has 511 tokens, too few for one window\n"
        "  limit: 512 tokens a window\n"
        "  remedy: give a longer text, or a smaller --ctx (at least 4)"
    )
    with pytest.raises(InputError, match="the text has 0 tokens"):
        evaluate(Model(1), [], context=4)


@pytest.mark.parametrize("context", [0, -8, 2, 7])
def test_windows_that_cannot_be_halved(context: int) -> None:
    with pytest.raises(UsageError, match=f"windows of {context} tokens cannot be scored"):
        evaluate(Model(1), tokens(100), context=context)


def test_no_windows_asked_for() -> None:
    with pytest.raises(UsageError, match="0 windows were asked for"):
        evaluate(Model(1), tokens(100), context=8, max_windows=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers(value: float) -> None:
    def broken(ids: Array) -> Array:
        logits = np.zeros((len(ids), VOCAB), np.float32)
        logits[5, 3] = value
        return logits

    with pytest.raises(NumericalError, match="the model's logits are not numbers") as error:
        evaluate(broken, tokens(16), context=CONTEXT)
    assert error.value.where == "window 0"
    with pytest.raises(NumericalError, match="the reference's logits are not numbers"):
        evaluate(Model(1), tokens(16), context=CONTEXT, reference=broken)


def test_shapes_are_checked() -> None:
    with pytest.raises(InternalError, match=r"the model gave logits of shape \(7, 11\)"):
        evaluate(lambda ids: Model(1)(ids)[1:], tokens(16), context=CONTEXT)
    with pytest.raises(InternalError, match=r"the reference gave logits of shape \(5, 11\)"):
        evaluate(Model(1), tokens(16), context=CONTEXT, reference=lambda ids: Model(1)(ids)[:5])
    with pytest.raises(InternalError, match="not one sequence of integers"):
        evaluate(Model(1), [[1, 2]], context=CONTEXT)


def test_vocabularies_must_agree() -> None:
    with pytest.raises(InputError, match="the reference has a vocabulary of 12, the model one of 11"):
        evaluate(Model(1), tokens(16), context=CONTEXT, reference=Model(1, vocab=12))
    with pytest.raises(InputError, match="token 99 is not in the vocabulary") as error:
        evaluate(Model(1), [0, 99, 0, 0, 0, 0, 0, 0], context=CONTEXT)
    assert error.value.limit == "0 to 10"


# The cache of the reference


def test_cached_reference_gives_nearly_the_same_figures(tmp_path: Path) -> None:
    text = tokens(4 * 32, 500)
    direct = evaluate(Model(1, 500), text, context=32, reference=Model(2, 500)).divergence
    cached = ReferenceCache(tmp_path, "digest", Model(2, 500))
    through = evaluate(Model(1, 500), text, context=32, reference=cached).divergence
    assert direct is not None and through is not None
    assert through.mean == pytest.approx(direct.mean, abs=FLOAT16_CACHE)
    assert through.top1 == direct.top1


def test_cache_asks_the_model_once_and_answers_the_same(tmp_path: Path) -> None:
    text, first, second = tokens(3 * CONTEXT), Model(2), Model(2)
    results = [
        evaluate(Model(1), text, context=CONTEXT, reference=ReferenceCache(tmp_path / "new", "digest", model))
        for model in (first, second)
    ]
    assert (first.calls, second.calls) == (3, 0)
    assert results[0] == results[1]


def test_cache_tells_models_and_windows_apart(tmp_path: Path) -> None:
    window = tokens(CONTEXT)
    a, b = Model(2), Model(3)
    ReferenceCache(tmp_path, "a", a)(window)
    ReferenceCache(tmp_path, "b", b)(window)
    ReferenceCache(tmp_path, "a", a)(window + 1)
    ReferenceCache(tmp_path, "a", a)(window[: CONTEXT // 2])
    assert (a.calls, b.calls) == (3, 1)
    assert len(list(tmp_path.iterdir())) == 4


def test_cut_off_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted(ids: Array) -> Iterator[Array]:
        yield Model(2)(ids)[: CONTEXT - 2]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ReferenceCache(tmp_path, "digest", interrupted)(tokens(CONTEXT))
    assert list(tmp_path.iterdir()) == []


def test_whole_windows_are_kept_apart_from_second_halves(tmp_path: Path) -> None:
    window, model = tokens(CONTEXT), Model(2)
    half = ReferenceCache(tmp_path, "digest", model)(window)
    whole = ReferenceCache(tmp_path, "digest", model, whole=True)(window)
    assert (len(half), len(whole), model.calls) == (CONTEXT // 2, CONTEXT - 1, 2)
    np.testing.assert_array_equal(whole[second_half(CONTEXT)], half)


def test_cached_predictions_are_mapped_not_read(tmp_path: Path) -> None:
    assert isinstance(ReferenceCache(tmp_path, "digest", Model(2))(tokens(CONTEXT)), np.memmap)


def test_cache_keeps_impossible_tokens_impossible(tmp_path: Path) -> None:
    def certain(ids: Array) -> Array:
        return np.tile(np.where(np.arange(VOCAB) == 3, 1e6, 0.0), (len(ids), 1))

    result = evaluate(Model(1), tokens(16), context=CONTEXT, reference=ReferenceCache(tmp_path, "digest", certain))
    direct = evaluate(Model(1), tokens(16), context=CONTEXT, reference=certain)
    assert result == direct
