"""Sampled text follows the model's distribution, repeatably."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitwright.frontend.calibrate.sample import sample
from bitwright.frontend.interpreter import Interpreter
from tests.canonical_model import Shape, decoder


def test_the_same_seed_gives_the_same_text_and_another_another() -> None:
    model = decoder(Shape(layers=1))
    interpreter = Interpreter(model.graph)
    ticks: list[tuple[int, int]] = []
    first = sample(model, interpreter, 2, 12, progress=lambda *tick: ticks.append(tick))
    assert first.shape == (2, 12) and first.dtype == np.int64 and ticks == [(1, 2), (2, 2)]
    assert first.min() >= 0 and first.max() < model.vocab
    np.testing.assert_array_equal(first, sample(model, interpreter, 2, 12))
    assert (first != sample(model, interpreter, 2, 12, seed=1)).any()


def test_a_window_begins_with_the_first_token_of_a_text() -> None:
    model = replace(decoder(Shape(layers=1)), generation={"bos_token_id": 7})
    assert (sample(model, Interpreter(model.graph), 3, 2)[:, 0] == 7).all()


def test_tokens_come_as_often_as_the_model_says() -> None:
    model = replace(decoder(Shape(layers=1, vocab=5)), generation={"bos_token_id": 2})
    interpreter = Interpreter(model.graph)
    logits = interpreter.logits(np.array([2]))[0].astype(np.float64)
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    seconds = sample(model, interpreter, 400, 2)[:, 1]
    frequency = np.bincount(seconds, minlength=5) / 400
    # Four standard deviations of a binomial share.
    assert np.all(np.abs(frequency - probability) <= 4 * np.sqrt(probability * (1 - probability) / 400) + 1e-9)
