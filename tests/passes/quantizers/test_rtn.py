"""Round to nearest: within half a step, exact on its own grid, and never out of range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import UnsupportedError
from bitwright.passes.quantizers import rtn
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.scheme import BITS, WeightScheme

SCHEMES = [
    WeightScheme("uniform", bits, group, symmetric)
    for bits in BITS
    for group in (32, 64, 0)
    for symmetric in (True, False)
]


@settings(max_examples=60, deadline=None)
@given(scheme=st.sampled_from(SCHEMES), seed=st.integers(0, 2**16), spread=st.floats(1e-3, 1e3))
def test_error_is_at_most_half_a_step_inside_the_range(scheme: WeightScheme, seed: int, spread: float) -> None:
    weights = (np.random.default_rng(seed).standard_normal((5, 192)) * spread).astype(np.float32)
    quantized = round_to_nearest(weights, scheme)
    assert quantized.codes.max() < 2**scheme.bits
    groups = scheme.groups(192)
    steps = np.repeat(np.abs(quantized.scales.astype(np.float32)), 192 // groups, axis=1)
    error = np.abs(quantized.dequantize(scheme) - weights)
    # The symmetric grid reaches 2**(b-1) - 1 steps on one side: the far end may be clipped by a step. Rounding the
    # scale to half precision moves the ends by 2**-11 of the range, the zero point by half a step at each end.
    slack = 1.0 if scheme.symmetric else 0.5
    assert np.all(error <= steps * (0.5 + slack + 2.0**scheme.bits * 2**-11) + 1e-12)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_matrix_on_the_grid_is_reproduced(scheme: WeightScheme) -> None:
    random = np.random.default_rng(3)
    codes = random.integers(0, 2**scheme.bits, (4, 192))
    groups = codes.reshape(4, scheme.groups(192), -1)
    groups[:, :, 0] = 0  # the lowest code: the extreme that fixes a symmetric scale
    groups[:, :, 1] = 2**scheme.bits - 1
    zero = 2 ** (scheme.bits - 1)
    weights = ((codes - zero) * 0.25).astype(np.float32)
    quantized = round_to_nearest(weights, scheme)
    np.testing.assert_array_equal(quantized.dequantize(scheme), weights)


def test_zero_groups_stay_zero() -> None:
    weights = np.zeros((2, 64), np.float32)
    for symmetric in (True, False):
        scheme = WeightScheme("uniform", 4, 32, symmetric)
        assert not round_to_nearest(weights, scheme).dequantize(scheme).any()


def test_weights_too_large_for_a_half_precision_scale_are_refused() -> None:
    weights = np.full((1, 32), 1e9, np.float32)
    with pytest.raises(UnsupportedError, match="too large for a half-precision scale"):
        round_to_nearest(weights, WeightScheme("uniform", 4, 32))


@pytest.mark.parametrize("scheme", [WeightScheme("uniform", 4, 32), WeightScheme("uniform", 3, 0, False)], ids=str)
def test_blocks_of_rows_change_nothing(scheme: WeightScheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).standard_normal((11, 64)).astype(np.float32)
    whole = round_to_nearest(weights, scheme)
    monkeypatch.setattr(rtn, "BLOCK_WEIGHTS", 3 * 64)  # four blocks, the last of two rows
    blocked = round_to_nearest(weights, scheme)
    np.testing.assert_array_equal(blocked.dequantize(scheme), whole.dequantize(scheme))
    np.testing.assert_array_equal(blocked.codes, whole.codes)
