"""Metrics against their formulas written out, and the Fisher metric against a true divergence."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.quantized_rows import SCALE_BITS
from bitwright.codegen.reference.linear import rounded_up
from bitwright.errors import UsageError
from bitwright.passes.sensitivity.find import metric_named
from bitwright.passes.sensitivity.metric import METRICS, Evidence
from bitwright.passes.sensitivity.scores import LookUps, activation_losses, rounded, tile_sums

TOKENS, INPUTS, OUTPUTS = 7, 5, 3


def layer(seed: int = 0) -> tuple[Evidence, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x, g = (random.standard_normal((TOKENS, n)).astype(np.float32) for n in (INPUTS, OUTPUTS))
    weights, error = (random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32) for _ in range(2))
    return Evidence(x, lambda rows: g[:, rows], lambda e: float(np.square(e).sum())), g, weights, error


def written_out(name: str) -> np.ndarray:
    evidence, g, _, d = layer()
    x, result = evidence.inputs, np.zeros(OUTPUTS)
    for o in range(OUTPUTS):
        effects = [float(d[o] @ x[t]) for t in range(TOKENS)]
        square = sum(x[t] ** 2 for t in range(TOKENS))
        result[o] = {
            "fisher": sum((g[t, o] * effects[t]) ** 2 for t in range(TOKENS)) / 2 / TOKENS,
            "output_mse": sum(e**2 for e in effects) / TOKENS,
            "hessian_diagonal": float(d[o] ** 2 @ square) / TOKENS,
            "fisher_trace": sum(float((g[t, o] * x[t]) @ (g[t, o] * x[t])) for t in range(TOKENS))
            * float(np.mean(d[o] ** 2))
            / 2
            / TOKENS,
            "first_order": abs(sum(g[t, o] * effects[t] for t in range(TOKENS))) / TOKENS,
            # The divergence of the fake model is |error|^2, so its coefficient is |W|^2.
            "linearity": float(d[o] @ d[o]),
        }.get(name, np.nan)
    if name == "forward_kl":
        share = written_out("output_mse")
        return np.asarray(share / share.sum() * np.square(d).sum())
    return result


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_is_its_formula(name: str) -> None:
    evidence, _, weights, error = layer()
    found = metric_named(name).losses(evidence, weights, error)
    assert found == pytest.approx(written_out(name), rel=1e-4)


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'magic' is not a sensitivity metric") as caught:
        metric_named("magic")
    assert "fisher" in str(caught.value.limit)


def test_the_fisher_metric_predicts_the_divergence_of_a_softmax_layer() -> None:
    """A small random error of a softmax layer: g^2 in expectation is p (1 - p), and the mean over errors is the KL."""
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 16)).astype(np.float32)
    weights = random.standard_normal((20, 16)).astype(np.float32) / 4

    def log_softmax(w: np.ndarray) -> np.ndarray:
        z = x.astype(np.float64) @ w.T
        return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))

    p = np.exp(log_softmax(weights))
    evidence = Evidence(x, lambda rows: np.sqrt(p * (1 - p)).astype(np.float32)[:, rows], lambda _: 0.0)
    errors = [1e-2 * random.standard_normal(weights.shape).astype(np.float32) for _ in range(200)]
    true = np.mean([(p * (np.log(p) - log_softmax(weights + e))).sum(1).mean() for e in errors])
    predicted = np.mean([metric_named("fisher").losses(evidence, weights, e).sum() for e in errors])
    assert predicted == pytest.approx(true, rel=0.03)


def test_tiles_have_64_rows_and_the_last_what_is_left() -> None:
    assert tile_sums(np.ones(130)).tolist() == [64, 64, 2]


def test_int8_activations_are_off_by_half_a_step_at_most() -> None:
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    for group in (32, 0):
        step = rounded_up(np.abs(x.reshape(5, -1, group or 64)).max(2, keepdims=True) / np.float32(127), SCALE_BITS[1])
        off = (rounded(x, group) - x).reshape(5, -1, group or 64)
        assert (np.abs(off) <= 0.5001 * step).all() and np.abs(off).max() > 0
    gradient = np.ones((5, 2), np.float32)
    evidence = Evidence(x, lambda rows: gradient[:, rows], lambda _: 0.0)
    weights = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    derived = np.square((rounded(x, 32) - x) @ weights.T).sum() / 2 / 5
    assert activation_losses(weights, evidence, 32) == pytest.approx([derived], rel=1e-5)


def test_rows_of_a_table_cost_by_how_often_they_are_looked_up() -> None:
    look_ups = LookUps(np.array([0.75, 0.25]), np.array([1.0, 4.0]))
    error = np.array([[1, 0], [0, 1]], np.float32)
    assert look_ups.losses(error).tolist() == [0.5 * 0.75 * 1, 0.5 * 0.25 * 4]
