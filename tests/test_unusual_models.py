"""Structures that ordinary decoders lack, compiled: every entry point computes what the torch interpreter computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright import pipeline
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.runtime.session import load
from tests import unusual_models

# Root of the mean squared error over the spread of the expected values. 8-bit weights and activations: a rounding error
# of absmax / 255 to / 127 in each of up to ten products in a row, about 0.013 in all.
BOUNDS = {"f32": 2e-6, "u8g32a8": 0.03}
CHUNK = 16


def _error(found: Any, expected: Any) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


@pytest.mark.parametrize("scheme", BOUNDS)
@pytest.mark.parametrize("build", unusual_models.DECODERS, ids=lambda build: build.__name__)
def test_score_prefill_and_decode_equal_the_interpreter(
    tmp_path: Path, build: Callable[[], ImportedModel], scheme: str
) -> None:
    model = build()
    ids = np.random.default_rng(0).integers(0, model.vocab, 45)
    expected = Interpreter(model.graph).logits(ids)
    pipeline.compile(model, tmp_path / "a", context=64, chunk=CHUNK, scheme=scheme)
    session = load(tmp_path / "a")
    assert _error(session.logits(ids), expected) < BOUNDS[scheme]
    session.reset()
    assert _error(session.prefill(ids[:40]), expected[39]) < BOUNDS[scheme]
    decoded = [session.decode(int(number)) for number in ids[40:]]
    assert _error(np.stack(decoded), expected[40:]) < BOUNDS[scheme]


@pytest.mark.parametrize("scheme", BOUNDS)
def test_an_encoder_takes_texts_longer_than_a_decoders_chunk(tmp_path: Path, scheme: str) -> None:
    model = unusual_models.encoder(64)
    pipeline.compile(model, tmp_path / "a", chunk=CHUNK, scheme=scheme)
    session = load(tmp_path / "a")
    for count in (CHUNK + 1, 64):
        ids = np.random.default_rng(count).integers(0, model.vocab, count)
        types = ids % 2
        expected = Interpreter(model.graph).hidden(ids, types)
        assert _error(session.encode(ids, types), expected) < BOUNDS[scheme]
