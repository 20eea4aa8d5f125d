"""The best codebook: an exact minimum, never worse than the uniform grid, and the same every time."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import UnsupportedError
from bitwright.passes.quantizers import codebook
from bitwright.passes.quantizers.codebook import best_codebook, best_values, codes_of
from bitwright.passes.quantizers.methods import quantize
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.scheme import CODEBOOK_BITS, WeightScheme

SCHEMES = [WeightScheme("codebook", bits, group) for bits in CODEBOOK_BITS for group in (32, 64, 0)]


def weights_of(seed: int, spread: float = 0.1, rows: int = 7) -> Any:
    return (np.random.default_rng(seed).standard_t(5, (rows, 192)) * spread).astype(np.float32)


def error(quantized: Any, scheme: WeightScheme, weights: Any, importance: Any) -> float:
    return float((np.square(quantized.dequantize(scheme).astype(np.float64) - weights) * importance).sum())


@settings(max_examples=40, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES), seed=st.integers(0, 2**16), spread=st.floats(0.05, 1e3), rounds=st.integers(1, 4)
)
def test_never_worse_than_rounding_to_the_uniform_grid(
    scheme: WeightScheme, seed: int, spread: float, rounds: int
) -> None:
    weights = weights_of(seed, spread)
    importance = np.random.default_rng(seed + 1).gamma(0.5, size=192).astype(np.float32)
    uniform = WeightScheme("uniform", scheme.bits, scheme.group)
    bound = error(round_to_nearest(weights, uniform), uniform, weights, importance)
    found = best_codebook(weights, scheme, importance, rounds)
    assert found.codes.max() < 2**scheme.bits and found.zeros is None
    assert found.codebook is not None and found.codebook.shape == (2**scheme.bits,)
    assert error(found, scheme, weights, importance) <= bound * (1 + 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounds_only_improve(scheme: WeightScheme) -> None:
    weights = weights_of(0)
    errors = [error(best_codebook(weights, scheme, None, rounds), scheme, weights, 1) for rounds in (1, 2, 3, 4)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


def test_the_table_is_a_global_minimum() -> None:
    """Against every table of three values out of a coarse set that holds all the data."""
    random = np.random.default_rng(2)
    u = random.integers(-4, 5, 40).astype(np.float64) * 8
    h = random.gamma(1.0, size=40)
    bins = (2 * (u + 128)).astype(int)
    mass, moment = np.bincount(bins, h, 513), np.bincount(bins, h * u, 513)

    def cost(values: Any) -> float:
        return float((h * np.square(u[:, None] - np.array(values)).min(axis=1)).sum())

    for step in (1, 2):
        found = best_values(mass, moment, 3, step)
        assert list(found) == sorted(found) and not (found % step).any()
        assert cost(found) <= min(cost(values) for values in combinations(range(-36, 37, 2), 3)) + 1e-9


def test_codes_are_the_nearest_values() -> None:
    u = np.random.default_rng(0).uniform(-140, 140, 5000).astype(np.float32)
    values = np.array([-128, -50, -3, 0, 1, 64, 100, 127], np.int8)
    distance = np.abs(u[:, None] - values)
    np.testing.assert_array_equal(distance[np.arange(u.size), codes_of(u, values)], distance.min(axis=1))


def test_a_matrix_of_few_values_is_reproduced() -> None:
    """Four values in units of a scale that half precision holds: two bits are enough."""
    values = np.array([-128, -10, 6, 78])
    weights = (values[np.random.default_rng(0).integers(0, 4, (6, 64))] * 2.0**-9).astype(np.float32)
    weights[:, ::32] = -128 * 2.0**-9
    scheme = WeightScheme("codebook", 2, 32)
    np.testing.assert_array_equal(best_codebook(weights, scheme).dequantize(scheme), weights)


def test_zero_groups_stay_zero() -> None:
    scheme = WeightScheme("codebook", 3, 32)
    weights = np.concatenate([np.zeros((2, 64)), np.ones((1, 64))]).astype(np.float32)
    dequantized = best_codebook(weights, scheme).dequantize(scheme)
    assert not dequantized[:2].any() and np.allclose(dequantized[2], 1, rtol=1e-3)
    assert not best_codebook(np.zeros((2, 64), np.float32), scheme).dequantize(scheme).any()


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    weights, scheme = weights_of(3), WeightScheme("codebook", 2, 64)
    importance = np.where(np.arange(192) % 2, 100, 0.01).astype(np.float32)
    plain, weighted = best_codebook(weights, scheme), best_codebook(weights, scheme, importance)
    assert error(weighted, scheme, weights, importance) < 0.95 * error(plain, scheme, weights, importance)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, scheme = weights_of(4, rows=11), WeightScheme("codebook", 4, 32)
    whole = best_codebook(weights, scheme)
    monkeypatch.setattr(codebook, "BLOCK_WEIGHTS", 3 * 192)
    blocked = best_codebook(weights, scheme)
    np.testing.assert_array_equal(blocked.dequantize(scheme), whole.dequantize(scheme))


def test_weights_too_large_for_a_half_precision_scale_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="too large for a half-precision scale"):
        best_codebook(np.full((1, 32), 1e9, np.float32), WeightScheme("codebook", 4, 32))


def test_each_kind_has_its_quantizer() -> None:
    weights = weights_of(5)
    assert quantize("rtn", weights, WeightScheme("codebook", 3, 32), None).codebook is not None
    assert quantize("rtn", weights, WeightScheme("uniform", 3, 32), None).codebook is None
