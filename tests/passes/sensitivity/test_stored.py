"""What scores and simulations take a cache to give back."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.errors import UnsupportedError
from bitwright.keymap import HeadStatistics, key_map, value_map
from bitwright.passes.sensitivity.scores import cache_scores, stored
from bitwright.scheme import CacheScheme
from bitwright.site import Site

RNG = np.random.default_rng(4)
KEYS = (RNG.standard_normal((200, 2, 64)) * np.exp(RNG.standard_normal(64)) + 5).astype("float32")
QUERIES = np.exp(RNG.standard_normal(64))


def error(scheme: str, mapped: bool) -> float:
    """Mean squared error of scores of queries whose elements have the variances QUERIES."""
    flat = KEYS.astype(np.float64).transpose(1, 0, 2)
    square = flat.transpose(0, 2, 1) @ flat / flat.shape[1]
    maps = key_map(HeadStatistics(flat.mean(1), square, np.stack([np.diag(QUERIES)] * 2)))
    off = stored(KEYS, CacheScheme.parse(scheme), maps if mapped else None) - KEYS
    return float((off[1:] ** 2 * QUERIES).sum(-1).mean())


def test_mapped_keys_come_back_through_the_inverse() -> None:
    assert error("k8rowm", True) < 1e-3 * (KEYS**2 * QUERIES).sum(-1).mean()
    assert error("k4rowm", True) < 0.5 * error("k4row", False)
    assert error("k5-3rowm", True) < error("k4rowm", True)


@pytest.mark.parametrize("scheme", ["k4rowm", "v4rowm"])
def test_mapped_caches_without_their_map_are_refused(scheme: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{scheme} cannot be scored or simulated") as caught:
        stored(KEYS, CacheScheme.parse(scheme))
    assert f"use {scheme[:-1]}" in str(caught.value)


def test_mapped_values_come_back_through_the_inverse() -> None:
    # Half the elements ten times as large as the others, at which gradients are ten times as large: an error of step d
    # costs d^2 (50 + 0.5) / 64 per element as it is. Balanced, all elements have one size: 100 times less, before what
    # ranges and the ridge change.
    size = np.where(np.arange(64) < 32, 10, 1)
    values = (RNG.standard_normal((400, 2, 64)) * size).astype("float32")
    flat = values.astype(np.float64).transpose(1, 0, 2)
    gradients = np.stack([np.diag(100.0 / size**2)] * 2)
    maps = value_map(HeadStatistics(flat.mean(1), flat.transpose(0, 2, 1) @ flat / 400, gradients))
    errors = [stored(values, CacheScheme.parse(scheme), maps) - values for scheme in ("v4row", "v4rowm")]
    plain, mapped = (float((error**2 * 100 / size**2).mean()) for error in errors)
    assert 0 < mapped < 0.2 * plain


def test_losses_of_mapped_schemes_are_those_of_the_errors_that_come_back() -> None:
    """With one direction of gradients per element: sums over mapped elements and over stored ones agree."""
    size = np.exp(RNG.standard_normal(64))
    values = (RNG.standard_normal((512, 128)) * np.tile(size, 2)).astype("float32")
    gradients = (RNG.standard_normal((512, 128)) / np.tile(size, 2)).astype("float32")
    heads, felt = values.reshape(512, 2, 64).astype("float64"), gradients.reshape(512, 2, 64).astype("float64")
    square, moment = (np.einsum("thd,the->hde", x, x) / 512 for x in (heads, felt))
    maps = value_map(HeadStatistics(heads.mean(0), square, moment))
    site = Site("layer.0.v_cache", "v_cache", (2, 64))
    scheme = CacheScheme.parse("v4rowm")
    found = cache_scores(site, values, gradients, [scheme], maps, 128).caches["v4rowm"]
    error = stored(values.reshape(512, 2, 64), scheme, maps) - values.reshape(512, 2, 64)
    products = np.einsum("thd,thd->th", error.astype("float64"), felt)
    # Both are means of 65,536 or 1,024 squared normals: standard deviations of 0.6 and 4 %.
    assert found == pytest.approx(float((products**2).sum()) / (2 * 512), rel=0.2)


def test_every_window_has_a_first_token_of_its_own() -> None:
    flat = KEYS.astype(np.float64).transpose(1, 0, 2)
    maps = key_map(HeadStatistics(flat.mean(1), flat.transpose(0, 2, 1) @ flat / 200, np.stack([np.eye(64)] * 2)))
    site = Site("layer.0.k_cache", "k_cache", (2, 64))
    gradients = np.zeros((200, 128), np.float32)
    gradients[100] = 1
    values, schemes = KEYS.reshape(200, 128), [CacheScheme.parse("k2rowm")]
    apart, together = (
        cache_scores(site, values, gradients, schemes, maps, window).caches["k2rowm"] for window in (100, None)
    )
    assert apart < 1e-3 * together
