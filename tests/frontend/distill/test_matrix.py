"""Trainable rows: they start as given, and their gradients are those of the straight-through estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitwright.frontend.distill.matrix import QuantizedRows, TrainableRows

torch = pytest.importorskip("torch")

ROWS, GROUPS, SIZE = 5, 3, 8


def rows(kind: str) -> tuple[QuantizedRows, Any]:
    """Rows on a grid, and float weights near them."""
    random = np.random.default_rng(1)
    scales = random.standard_normal((ROWS, GROUPS)).astype(np.float32)
    scales[0, 0] = 0
    numbers = None
    low, high = np.full((1, 1), -4, np.float32), np.full((1, 1), 3, np.float32)
    if kind == "zero points":
        zeros = random.integers(0, 8, (ROWS, GROUPS)).astype(np.float32)
        low, high = -zeros, 7 - zeros
    if kind == "codebook":
        numbers = np.array([-100, -50, -20, 0, 10, 30, 60, 127], np.float32)
        values = random.choice(numbers, (ROWS, GROUPS * SIZE))
    else:
        cut = random.integers(0, 8, (ROWS, GROUPS, SIZE)) + np.broadcast_to(low, (ROWS, GROUPS))[:, :, None]
        values = cut.reshape(ROWS, -1).astype(np.float32)
    made = QuantizedRows(values, scales, low, high, numbers)
    exact = values * np.repeat(scales, SIZE, axis=1)
    noise = random.standard_normal(exact.shape) * made.step * np.repeat(np.abs(scales), SIZE, axis=1)
    return made, (exact + noise).astype(np.float32)


@pytest.mark.parametrize("kind", ["symmetric", "zero points", "codebook"])
def test_training_begins_with_the_codes_it_is_given(kind: str) -> None:
    made, weights = rows(kind)
    trainable = TrainableRows(made, weights)
    np.testing.assert_array_equal(trainable.quantized().values, made.values)
    np.testing.assert_array_equal(trainable.weights().detach(), made.values * np.repeat(made.scales, SIZE, axis=1))


def test_latent_numbers_stand_where_the_weights_are() -> None:
    made, weights = rows("symmetric")
    near = made.values * np.repeat(made.scales, SIZE, axis=1) * np.float32(1.01)
    trainable = TrainableRows(made, near)
    used = np.repeat(made.scales != 0, SIZE, axis=1)
    np.testing.assert_allclose(trainable.latent.detach().numpy()[used], (made.values * 1.01)[used], rtol=1e-5)
    assert not np.array_equal(trainable.latent.detach().numpy(), TrainableRows(made, weights).latent.detach().numpy())


@pytest.mark.parametrize("kind", ["symmetric", "zero points", "codebook"])
def test_gradients_pass_through_rounding_and_reach_the_scales(kind: str) -> None:
    made, weights = rows(kind)
    trainable = TrainableRows(made, weights)
    pull = np.random.default_rng(2).standard_normal(weights.shape).astype(np.float32)
    (trainable.weights() * torch.from_numpy(pull)).sum().backward()
    np.testing.assert_allclose(trainable.latent.grad, pull * np.repeat(made.scales, SIZE, axis=1), rtol=1e-5)
    by_group = (pull * made.values).reshape(ROWS, GROUPS, SIZE).sum(-1)
    np.testing.assert_allclose(trainable.scales.grad, by_group, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["symmetric", "zero points", "codebook"])
def test_numbers_never_leave_the_grid(kind: str) -> None:
    made, weights = rows(kind)
    trainable = TrainableRows(made, weights)
    with torch.no_grad():
        trainable.latent += torch.randn(trainable.latent.shape, generator=torch.Generator().manual_seed(0)) * 300
    values = trainable.quantized().values.reshape(ROWS, GROUPS, SIZE)
    assert (values >= made.low[:, :, None]).all() or kind == "codebook"
    assert (values <= made.high[:, :, None]).all() or kind == "codebook"
    allowed = np.arange(-8, 9) if made.numbers is None else made.numbers
    assert np.isin(values, allowed).all()
