"""Refinement against exhaustive search and a general least-squares solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitwright.passes.quantizers.grid import Integers, LookedUp
from bitwright.passes.quantizers.methods import quantize
from bitwright.passes.quantizers.objective import damped, row_losses
from bitwright.passes.quantizers.refine import best_scales, descend, refine
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.passes.quantizers.state import State
from bitwright.scheme import WeightScheme
from tests.passes.quantizers.cases import weights_and_moment


@pytest.mark.parametrize("name", ["u3g32", "u2g64z", "u4row"])
def test_scales_are_the_least_squares_solution(name: str) -> None:
    scheme = WeightScheme.parse(name)
    grid = Integers.of(scheme)
    weights, moment = weights_and_moment(3, 192)
    moment = damped(moment)
    state = State.of(round_to_nearest(weights, scheme), grid)
    found = best_scales(state, weights, grid, moment)
    root = np.linalg.cholesky(moment.astype(np.float64)).T  # |root v|^2 = v^T H v
    groups = scheme.groups(192)
    for row in range(3):
        cut = np.zeros((192, groups))
        for group, columns in enumerate(np.split(np.arange(192), groups)):
            cut[columns, group] = state.values[row, columns]
        expected = np.linalg.lstsq(root @ cut, root @ weights[row], rcond=None)[0]
        np.testing.assert_allclose(found.scales[row], expected, rtol=2e-3)


def test_a_sweep_is_coordinate_descent() -> None:
    """One column at a time, every code tried: the sweep takes the same ones."""
    scheme = WeightScheme("uniform", 2, 32)
    grid = Integers.of(scheme)
    weights, moment = weights_and_moment(4, 64, seed=2)
    moment = damped(moment)
    state = State.of(round_to_nearest(weights, scheme), grid)
    swept = descend(state, weights, grid, moment)
    values = state.values.copy()
    scales = np.repeat(state.scales.astype(np.float32), 32, axis=1)
    for row, column in itertools.product(range(4), range(64)):
        losses = []
        for candidate in (-2, -1, 0, 1):
            values[row, column] = candidate
            error = (values[row] * scales[row] - weights[row]).astype(np.float64)
            losses.append(error @ moment @ error)
        values[row, column] = (-2, -1, 0, 1)[int(np.argmin(losses))]
    np.testing.assert_array_equal(swept.values, values)


@pytest.mark.parametrize("name", ["u4g32", "u3g32z"])
def test_more_rounds_are_never_worse_for_any_output(name: str) -> None:
    scheme = WeightScheme.parse(name)
    grid = Integers.of(scheme)
    weights, moment = weights_and_moment(16, 192)
    moment = damped(moment)
    state = State.of(round_to_nearest(weights, scheme), grid)
    losses = [row_losses(refine(state, weights, grid, moment, rounds).weights - weights, moment) for rounds in range(4)]
    for before, after in itertools.pairwise(losses):
        assert np.all(after <= before * (1 + 1e-4))
    assert losses[3].sum() < 0.7 * losses[0].sum()


def test_a_state_keeps_the_matrix() -> None:
    for name in ("u4g32", "u3g64z", "u8row", "c3g64"):
        scheme = WeightScheme.parse(name)
        matrix = quantize("rtn", weights_and_moment(5, 192)[0], scheme, None)
        grid = Integers.of(scheme) if matrix.codebook is None else LookedUp(matrix.codebook)
        state = State.of(matrix, grid)
        np.testing.assert_array_equal(state.matrix(grid).codes, matrix.codes)
        np.testing.assert_array_equal(state.weights, matrix.dequantize(scheme))
