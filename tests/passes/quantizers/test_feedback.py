"""Error feedback against its definition and against the form the GPTQ paper gives it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bitwright.passes.quantizers.feedback import Feedback, column_order, error_feedback, factors
from bitwright.passes.quantizers.fit import fit_groups
from bitwright.passes.quantizers.grid import Integers
from bitwright.passes.quantizers.objective import conditional, damped, row_losses
from bitwright.scheme import WeightScheme
from tests.passes.quantizers.cases import weights_and_moment

Doubles = npt.NDArray[np.float64]


def test_the_factors_make_the_matrix() -> None:
    _, moment = weights_and_moment(1, 96)
    feedback, diagonal = factors(moment)
    unit = feedback.astype(np.float64) + np.eye(96)
    assert not np.tril(feedback).any()
    np.testing.assert_allclose(unit * diagonal @ unit.T, moment, atol=1e-5 * float(np.abs(moment).max()))


def test_columns_go_in_falling_order_of_importance_inside_whole_groups() -> None:
    diagonal = np.array([1, 2, 9, 0, 4, 4], np.float32)
    np.testing.assert_array_equal(column_order(diagonal, 2), [2, 3, 4, 5, 1, 0])
    np.testing.assert_array_equal(column_order(diagonal, 6), [2, 4, 5, 1, 0, 3])


def gptq_by_the_paper(weights: Doubles, moment: Doubles, scheme: WeightScheme) -> Doubles:
    """Algorithm 1 of Frantar et al. 2023, one column at a time: from the inverse of H, errors pushed to the right.

    Columns in the order of :func:`column_order`, a group's scales fitted when it is reached.
    """
    inputs = weights.shape[1]
    size = inputs // scheme.groups(inputs)
    order = column_order(np.diag(moment).astype(np.float32), size)
    work, matrix = weights[:, order].copy(), moment[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(matrix)).T
    result = np.empty_like(work)
    for j in range(inputs):
        if j % size == 0:
            importance = (1 / np.diag(upper)[j : j + size] ** 2).astype(np.float32)[:, None]
            group = work[:, j : j + size].T.astype(np.float32)
            scales, zeros = fit_groups(np.ascontiguousarray(group), importance, Integers.of(scheme))
            low = -(2 ** (scheme.bits - 1)) if zeros is None else -zeros.astype(np.float64)
        wide = scales.astype(np.float64)
        result[:, j] = np.clip(np.rint(work[:, j] / wide), low, low + 2**scheme.bits - 1) * wide
        error = (work[:, j] - result[:, j]) / upper[j, j]
        work[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    back = np.empty_like(result)
    back[:, order] = result
    return back


@pytest.mark.parametrize("scheme", ["u4g32", "u3g64", "u2row", "u4g32z"])
def test_it_is_gptq(scheme: str) -> None:
    parsed = WeightScheme.parse(scheme)
    weights, moment = weights_and_moment(24, 192, seed=5)
    moment = damped(moment)
    groups = parsed.groups(192)
    found = error_feedback(weights, Integers.of(parsed), groups, Feedback.of(moment, groups)).weights
    expected = gptq_by_the_paper(weights.astype(np.float64), moment.astype(np.float64), parsed)
    # Rounding in single precision moves a code that lies between two, and all codes of its row that follow.
    same = np.isclose(found, expected, atol=1e-6).all(axis=1)
    assert same.mean() > 0.8
    losses = [row_losses((q - weights).astype(np.float32), moment).sum() for q in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_objective_is_the_sum_of_the_weighted_rounding_errors() -> None:
    """With one scale for all, tr(E H E^T) = sum_j D_j |rounding error of column j|^2: rounding alone decides it."""
    weights, moment = weights_and_moment(8, 64)
    moment = damped(moment)
    order = column_order(np.diag(moment), 64)
    feedback, importance = factors(moment[np.ix_(order, order)])
    error = (error_feedback(weights, Integers(4, True), 1, Feedback.of(moment, 1)).weights - weights)[:, order]
    rounding = error @ (feedback + np.eye(64, dtype=np.float32))
    assert row_losses(error, moment[np.ix_(order, order)]).sum() == pytest.approx(
        float((rounding**2 @ importance).sum()), rel=1e-4
    )


def test_the_conditional_cost_of_a_column_is_what_is_left_when_the_others_are_free() -> None:
    random = np.random.default_rng(4)
    x = random.standard_normal((200, 12)) @ random.standard_normal((12, 12))
    moment = damped((x.T @ x / 200).astype(np.float32), 0.0)
    found = conditional(moment)
    full = damped(moment).astype(np.float64)
    for j in (0, 5, 11):
        others = [k for k in range(12) if k != j]
        # The least of e H e^T with e_j = 1: a least-squares problem in the other elements.
        best = np.linalg.solve(full[np.ix_(others, others)], -full[others, j])
        error = np.insert(best, j, 1.0)
        np.testing.assert_allclose(found[j], error @ full @ error, rtol=1e-6)
    assert (found <= np.diag(full) * (1 + 1e-6)).all()
