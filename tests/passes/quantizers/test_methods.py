"""Every quantizer: codes in range, never an output worse than with round-to-nearest, what its ingredients buy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import UnsupportedError
from bitwright.options import QUANTIZERS, QuantizerName
from bitwright.passes.quantizers import methods
from bitwright.passes.quantizers.methods import quantize
from bitwright.passes.quantizers.objective import damped, output_error, row_losses
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.scheme import BITS, CODEBOOK_BITS, WeightScheme
from tests.passes.quantizers.cases import weights_and_moment

SCHEMES = [
    WeightScheme("uniform", bits, group, symmetric)
    for bits in BITS
    for group in (32, 64, 0)
    for symmetric in (True, False)
]
CALIBRATED = tuple(name for name in QUANTIZERS if name != "rtn")


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(CALIBRATED),
    scheme=st.sampled_from(SCHEMES),
    seed=st.integers(0, 2**16),
    known=st.booleans(),
    spread=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_no_output_is_worse_than_rounded_to_nearest(
    name: QuantizerName, scheme: WeightScheme, seed: int, known: bool, spread: float
) -> None:
    weights, moment = weights_and_moment(7, 192, seed)
    weights *= np.float32(spread)
    quantized = quantize(name, weights, scheme, moment if known else None)
    assert quantized.codes.max() < 2**scheme.bits
    assert (quantized.zeros is None) == scheme.symmetric
    assert quantized.zeros is None or quantized.zeros.max() < 2**scheme.bits
    objective = damped(moment) if known else np.eye(192, dtype=np.float32)
    if name == "clip":  # weighs every input alone
        objective = np.diag(np.diag(objective))
    error, nearest = (
        row_losses(q.dequantize(scheme) - weights, objective) for q in (quantized, round_to_nearest(weights, scheme))
    )
    # Losses are summed in single precision.
    assert np.all(error <= nearest * (1 + 1e-4))


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(CALIBRATED),
    bits=st.sampled_from(CODEBOOK_BITS),
    group=st.sampled_from([32, 64, 0]),
    seed=st.integers(0, 2**16),
)
def test_no_matrix_is_worse_than_with_the_codebook_of_rtn(
    name: QuantizerName, bits: int, group: int, seed: int
) -> None:
    scheme = WeightScheme("codebook", bits, group)
    weights, moment = weights_and_moment(7, 192, seed)
    objective = damped(moment)
    if name == "clip":  # weighs every input alone
        objective = np.diag(np.diag(objective))
    quantized, nearest = quantize(name, weights, scheme, moment), quantize("rtn", weights, scheme, None)
    assert quantized.codes.max() < 2**bits and quantized.codebook is not None and quantized.zeros is None
    error, bound = (row_losses(q.dequantize(scheme) - weights, objective).sum() for q in (quantized, nearest))
    assert error <= bound * (1 + 1e-4)


@pytest.mark.parametrize("scheme", ["u4g32", "u3g64z", "u2g32", "c3g32", "c2g64"])
def test_every_ingredient_lowers_the_output_error(scheme: str) -> None:
    parsed = WeightScheme.parse(scheme)
    weights, moment = weights_and_moment(96, 192)
    errors = [
        output_error(weights, quantize(name, weights, parsed, moment).dequantize(parsed), moment) for name in QUANTIZERS
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("shape", [(1, 32), (5, 576), (3, 96)])
def test_odd_shapes(name: QuantizerName, shape: tuple[int, int]) -> None:
    weights, moment = weights_and_moment(*shape, tokens=16)  # fewer tokens than inputs: H alone is singular
    scheme = WeightScheme("uniform", 3, 32)
    quantized = quantize(name, weights, scheme, moment)
    assert quantized.codes.shape == shape and quantized.scales.shape == (shape[0], shape[1] // 32)
    assert np.isfinite(quantized.scales).all()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("scheme", ["u4g32", "u3g32z"])
def test_groups_of_zeros_and_inputs_that_are_never_excited(name: QuantizerName, scheme: str) -> None:
    weights, moment = weights_and_moment(4, 96)
    weights[:, :32] = 0
    moment[40:80] = 0
    moment[:, 40:80] = 0
    parsed = WeightScheme.parse(scheme)
    quantized = quantize(name, weights, parsed, moment)
    assert np.isfinite(quantized.scales).all()
    if name in ("rtn", "clip"):  # error feedback may use weights of zero to make up for others
        assert not quantized.dequantize(parsed)[:, :32].any()
    unexcited = quantize(name, weights, parsed, np.zeros_like(moment))
    assert not unexcited.dequantize(parsed)[:, :32].any()
    assert not quantize(name, np.zeros_like(weights), parsed, moment).dequantize(parsed).any()


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_matrix_on_the_grid_is_reproduced(name: QuantizerName) -> None:
    random = np.random.default_rng(3)
    codes = random.integers(0, 16, (4, 96))
    codes.reshape(4, 3, 32)[:, :, 0] = 0
    weights = ((codes - 8) * 0.25).astype(np.float32)
    scheme = WeightScheme("uniform", 4, 32)
    _, moment = weights_and_moment(4, 96)
    np.testing.assert_array_equal(quantize(name, weights, scheme, moment).dequantize(scheme), weights)


@pytest.mark.parametrize("name", CALIBRATED)
def test_blocks_of_rows_and_repetition_change_nothing(name: QuantizerName, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = WeightScheme("uniform", 3, 32, False)
    weights, moment = weights_and_moment(12, 96)
    whole = quantize(name, weights, scheme, moment)
    again = quantize(name, weights, scheme, moment)
    np.testing.assert_array_equal(whole.codes, again.codes)
    monkeypatch.setattr(methods, "BLOCK_WEIGHTS", 5 * 96)  # blocks of 5, 5 and 2 rows
    blocked = quantize(name, weights, scheme, moment)
    # Sums over rows may be taken in another order, which moves few codes by one.
    assert np.mean(blocked.codes != whole.codes) < 0.01


@pytest.mark.parametrize("name", QUANTIZERS)
def test_weights_too_large_for_a_half_precision_scale_are_refused(name: QuantizerName) -> None:
    with pytest.raises(UnsupportedError, match="too large for a half-precision scale"):
        quantize(name, np.full((1, 32), 1e9, np.float32), WeightScheme("uniform", 4, 32), None)
