"""Likelihoods against their definition, and their cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitwright.errors import InputError, NumericalError
from bitwright.runtime.quality.likelihood import Likelihood, likelihoods_of
from bitwright.runtime.quality.likelihood_cache import LikelihoodCache
from tests.runtime.quality.scored import VOCAB, Model

CONTEXT = [3, 1, 4]


@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_logprob_is_the_sum_over_tokens(piece: int) -> None:
    model = Model(1, piece)
    for tokens in ([5], [9, 2, 6], list(range(VOCAB)) * 3):
        found = likelihoods_of(model)(CONTEXT, [tokens])[0]
        assert found.logprob == pytest.approx(model.logprob(CONTEXT, tokens), rel=1e-12)
        assert found.tokens == len(tokens)


def test_several_continuations_score_as_each_alone() -> None:
    model = Model(1)
    continuations = [[5], [9, 2, 6], [], [5, 5]]
    together = likelihoods_of(model)(CONTEXT, continuations)
    for tokens, found in zip(continuations, together, strict=True):
        alone = likelihoods_of(model)(CONTEXT, [tokens])[0]
        assert found.logprob == pytest.approx(alone.logprob, rel=1e-12)
        assert (found.greedy, found.tokens) == (alone.greedy, alone.tokens)


def test_greedy_means_every_token_is_the_most_likely() -> None:
    model = Model(2)
    best = model.greedy(CONTEXT, 3)
    other = [*best[:2], (best[2] + 1) % VOCAB]
    first_wrong = [(best[0] + 1) % VOCAB, *best[1:]]
    found = likelihoods_of(model)(CONTEXT, [best, other, first_wrong, best[:1]])
    assert [likelihood.greedy for likelihood in found] == [True, False, False, True]


def test_nothing_to_say_is_certain() -> None:
    assert likelihoods_of(Model())(CONTEXT, [[]]) == [Likelihood(0.0, True, 0)]


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(NumericalError, match="the model's logits are not numbers"):
        likelihoods_of(lambda ids, first: [np.full((len(ids) - first, VOCAB), np.nan)])(CONTEXT, [[1]])


def test_cache_asks_once_and_answers_the_same(tmp_path: Path) -> None:
    model = Model(3)
    first, second = (
        LikelihoodCache(tmp_path / "new", "digest", likelihoods_of(model))(CONTEXT, [[1, 2], [3]]) for _ in range(2)
    )
    assert first == second
    assert model.fed == 1 + 1  # the row that all share, and one more of [1, 2]


def test_cache_tells_models_and_questions_apart(tmp_path: Path) -> None:
    for digest in ("a", "b"):
        for context, continuations in ((CONTEXT, [[1, 2]]), (CONTEXT, [[1], [2]]), ([*CONTEXT, 1], [[2]])):
            LikelihoodCache(tmp_path, digest, likelihoods_of(Model()))(context, continuations)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cache = LikelihoodCache(tmp_path, "digest", likelihoods_of(Model()))
    cache(CONTEXT, [[1]])
    (path,) = tmp_path.iterdir()
    path.write_text('[{"logprob": 1')
    with pytest.raises(InputError, match="a cached likelihood cannot be read") as error:
        cache(CONTEXT, [[1]])
    assert error.value.where == str(path)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        LikelihoodCache(tmp_path, "digest", likelihoods_of(Model()))(CONTEXT, [[1]])
    assert list(tmp_path.iterdir()) == []
