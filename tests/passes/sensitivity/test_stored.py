"""What scores and simulations take a cache to give back."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.errors import UnsupportedError
from bitwright.keymap import KeyStatistics, key_map
from bitwright.passes.sensitivity.scores import stored
from bitwright.profiling import ProfileOptions
from bitwright.scheme import CacheScheme

RNG = np.random.default_rng(4)
KEYS = (RNG.standard_normal((200, 2, 64)) * np.exp(RNG.standard_normal(64)) + 5).astype("float32")
QUERIES = np.exp(RNG.standard_normal(64))


def error(scheme: str, mapped: bool) -> float:
    """Mean squared error of scores of queries whose elements have the variances QUERIES."""
    flat = KEYS.astype(np.float64).transpose(1, 0, 2)
    covariance = np.stack([np.cov(head.T, bias=True) for head in flat])
    maps = key_map(KeyStatistics(flat.mean(1), covariance, np.stack([np.diag(QUERIES)] * 2)))
    off = stored(KEYS, CacheScheme.parse(scheme), maps if mapped else None) - KEYS
    return float((off[1:] ** 2 * QUERIES).sum(-1).mean())


def test_mapped_keys_come_back_through_the_inverse() -> None:
    assert error("k8rowm", True) < 1e-3 * (KEYS**2 * QUERIES).sum(-1).mean()
    assert error("k4rowm", True) < 0.5 * error("k4row", False)


def test_mapped_keys_without_their_map_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="k4rowm cannot be scored or simulated") as caught:
        stored(KEYS, CacheScheme.parse("k4rowm"))
    assert "use k4row" in str(caught.value)
    with pytest.raises(UnsupportedError, match="a profile of k4rowm"):
        ProfileOptions(schemes=("u4g32", "k4rowm"))


def test_mapped_values_come_back_through_the_transpose() -> None:
    # One element ten times as large. Steps follow (10 + 2.4) sigma as it is, 4.8 sigma of 1.6 times that once
    # mapped: 0.4 of the squared error.
    values = (RNG.standard_normal((200, 2, 64)) * np.where(np.arange(64) == 7, 10, 1)).astype("float32")
    errors = [stored(values, CacheScheme.parse(scheme)) - values for scheme in ("v4row", "v4rowm")]
    plain, mapped = (float((error**2).mean()) for error in errors)
    assert 0 < mapped < 0.7 * plain
