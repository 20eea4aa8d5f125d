"""Sampling against transformers' logits processors, and the rules each option promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import NumericalError, UsageError
from bitwright.runtime.sampling import Sampler, SamplingOptions, candidates, penalize

VOCAB = 50
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB, unique=True).map(
    lambda values: np.array(values, dtype=np.float32)
)


def transformers_distribution(logits: np.ndarray, seen: list[int], options: SamplingOptions) -> np.ndarray:
    """The same through Hugging Face transformers, in the order its ``generate`` applies them."""
    import torch
    from transformers.generation import logits_process as hf

    steps: list[Any] = []
    if options.repetition_penalty != 1.0:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    steps.append(hf.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        steps.append(hf.TopPLogitsWarper(options.top_p))
    if options.min_p > 0.0:
        steps.append(hf.MinPLogitsWarper(options.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    ids = torch.tensor([seen or [0]])
    for step in steps if seen else steps[options.repetition_penalty != 1.0 :]:
        scores = step(ids, scores)
    return scores.softmax(-1)[0].numpy()


@settings(max_examples=80, deadline=None)
@given(
    logits=LOGITS,
    seen=st.lists(st.integers(0, VOCAB - 1), max_size=8),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 100]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
)
def test_the_distribution_is_that_of_transformers(
    logits: np.ndarray, seen: list[int], temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    options = SamplingOptions(temperature, top_k, top_p, min_p, penalty)
    # transformers keeps at least one token; so do we, by construction.
    ids, probabilities = candidates(penalize(logits, seen, penalty), options)
    assert (np.diff(ids) > 0).all()
    ours = np.zeros(VOCAB)
    ours[ids] = probabilities
    # float32 logits up to 20 / 0.3 have steps of 4e-6, which is the relative error of an exponential.
    np.testing.assert_allclose(ours, transformers_distribution(logits, seen, options), atol=1e-5)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=3))
    counts = np.bincount([sampler(logits, ()) for _ in range(4000)], minlength=3) / 4000
    # Standard error of a share is at most sqrt(0.25 / 4000) = 0.008; five of them.
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.04)


@settings(max_examples=50, deadline=None)
@given(logits=LOGITS, top_k=st.integers(1, 5), seed=st.integers(0, 1000))
def test_a_token_that_was_cut_is_never_drawn(logits: np.ndarray, top_k: int, seed: int) -> None:
    sampler = Sampler(SamplingOptions(temperature=5.0, top_k=top_k, seed=seed))
    allowed = set(np.argsort(-logits)[:top_k].tolist())
    assert {sampler(logits, ()) for _ in range(20)} <= allowed


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature))
    assert sampler(np.array([1.0, 3.0, 2.9999], dtype=np.float32), ()) == 1


def test_greedy_takes_the_largest_and_among_equals_the_first() -> None:
    sampler = Sampler(SamplingOptions())
    assert sampler(np.array([1, 3, 3, 2], dtype=np.float32), ()) == 1


def test_the_repetition_penalty_also_changes_greedy_answers_and_not_the_logits() -> None:
    logits = np.array([1.0, 3.0, 2.9], dtype=np.float32)
    assert Sampler(SamplingOptions(repetition_penalty=1.2))(logits, iter([1, 1])) == 2
    assert logits.tolist() == [1.0, 3.0, np.float32(2.9)]


def test_the_penalty_pushes_negative_logits_down() -> None:
    found = penalize(np.array([-1.0, 2.0, 4.0], dtype=np.float32), [0, 2], 2.0)
    assert found.tolist() == [-2.0, 2.0, 2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(NumericalError, match="the model's logits are not finite"):
        Sampler(SamplingOptions())(np.array([0.0, bad], dtype=np.float32), ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", True),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", 1.0),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
    ],
)
def test_absurd_options_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingOptions(**{name: value})
    assert caught.value.what == f"{name} is {value!r}"
    assert caught.value.where == name
    assert caught.value.limit


def test_the_models_advice_counts_only_when_it_samples() -> None:
    advice = {"temperature": 0.2, "top_p": 0.9, "top_k": 50, "max_length": 3}
    assert SamplingOptions.recommended(advice) == SamplingOptions()
    assert SamplingOptions.recommended({**advice, "do_sample": True}) == SamplingOptions(0.2, 50, 0.9)
    given_ = SamplingOptions.recommended({**advice, "do_sample": True}, temperature=0.0, seed=7, min_p=None)
    assert given_ == SamplingOptions(0.0, 50, 0.9, seed=7)
