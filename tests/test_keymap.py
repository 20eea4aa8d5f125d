"""Maps keep scores and outputs, balance both sides, and make rounding errors of keys and values matter less."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright import keymap
from bitwright.codegen.cache_layout import PackedCache
from bitwright.codegen.reference.cache import dequantize, quantize
from bitwright.codegen.reference.head_map import head_map
from bitwright.keymap import HeadMap, HeadStatistics, key_map, mixing, value_map
from bitwright.scheme import CacheScheme

RNG = np.random.default_rng(5)


def sample(tokens: int, width: int) -> tuple[np.ndarray, np.ndarray, HeadStatistics]:
    """Queries and keys [tokens, 1, width] of unequal directions, keys far from zero, and their exact statistics."""
    mixed = RNG.standard_normal((2, width, width)) * np.exp(1.5 * RNG.standard_normal(width))
    q, k = (RNG.standard_normal((tokens, width)) @ matrix for matrix in mixed)
    k = k + 20 * RNG.standard_normal(width)
    # As if gradients at the keys were the queries.
    statistics = HeadStatistics(k.mean(0)[None], (k.T @ k / tokens)[None], (q.T @ q / tokens)[None])
    return q[:, None].astype(np.float32), k[:, None].astype(np.float32), statistics


def queries_of(maps: HeadMap) -> np.ndarray:
    return maps.inverse.transpose(0, 2, 1)


@pytest.mark.parametrize("width", [64, 80])
def test_scores_change_by_a_constant_per_query(width: int) -> None:
    q, k, statistics = sample(300, width)
    maps = key_map(statistics).mixed(halves=False)
    mapped_q = head_map(q[:, 0], queries_of(maps))
    mapped_k = head_map(k[:, 0], maps.forward, maps.shift)
    before, after = q[:, 0] @ k[:, 0].T, mapped_q @ mapped_k.T
    difference = (before - before[:, :1]) - (after - after[:, :1])
    assert np.abs(difference).max() < 1e-4 * np.abs(before).max()


def test_both_sides_are_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keymap, "RIDGE", 1e-6)
    q, k, statistics = sample(4000, 64)
    maps = key_map(statistics).mixed(halves=False)
    mapped_k = head_map(k[:, 0], maps.forward, maps.shift).astype(np.float64)
    mapped_q = head_map(q[:, 0], queries_of(maps)).astype(np.float64)
    covariance, moment = mapped_k.T @ mapped_k / len(k), mapped_q.T @ mapped_q / len(q)
    scale = np.trace(moment) / 64
    np.testing.assert_allclose(covariance, moment, atol=1e-3 * scale)
    np.testing.assert_allclose(np.diag(moment), scale, rtol=0.01)  # Hadamard: every element has the mean energy


@pytest.mark.parametrize("width", [64, 80])
def test_halves_have_one_size_each_and_the_map_stays_invertible(width: int) -> None:
    _, k, statistics = sample(2000, width)
    maps = key_map(statistics).mixed(halves=True)
    mapped = head_map(k[:, 0], maps.forward, maps.shift).astype(np.float64)
    first, second = (half.mean() for half in np.split((mapped**2).mean(0), 2))
    assert first == pytest.approx(second, rel=1e-3)
    np.testing.assert_allclose(maps.forward[0] @ maps.inverse[0], np.eye(width), atol=1e-3)
    high, low = np.split(key_map(statistics).spread[0], 2)
    assert high.min() > 0.5 * low.max()  # the ridge changes the order of what is nearly equal


def test_four_bit_scores_are_nearer_than_without_the_map() -> None:
    q, k, statistics = sample(500, 64)
    maps = key_map(statistics).mixed(halves=False)
    layout = PackedCache(CacheScheme.parse("k4row"), 1, 64, 512)

    def error(queries: np.ndarray, keys: np.ndarray) -> float:
        rounded = dequantize(*quantize(keys, layout.bits, layout.group), layout.bits)
        off = queries[:, 0] @ (rounded - keys)[:, 0].T
        return float(np.mean(off**2))

    mapped = head_map(q[:, 0], queries_of(maps))[:, None], head_map(k[:, 0], maps.forward, maps.shift)[:, None]
    assert error(*mapped) < 0.5 * error(q, k)


@pytest.mark.parametrize("size", [1, 16, 48, 64, 80, 128])
def test_mixing_is_orthonormal_and_flat(size: int) -> None:
    matrix = mixing(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    assert np.abs(matrix).max() <= np.sqrt(2 / size) + 1e-12


def test_keys_that_never_vary_are_mapped_all_the_same() -> None:
    zero = np.zeros((1, 16, 16))
    for maps in (
        key_map(HeadStatistics(np.ones((1, 16)), zero + 1, zero)),
        value_map(HeadStatistics(zero[0], zero, zero)),
    ):
        assert all(np.isfinite(part).all() for part in (maps.forward, maps.inverse, maps.shift))
        np.testing.assert_allclose(maps.forward @ maps.inverse, np.eye(16)[None], atol=1e-5)
