"""The quantizers by name.

======== =========================================================================================================
``rtn``  round to nearest; for codebooks the best table and its nearest values: needs no calibration
``clip`` round to nearest with searched scales; errors count as much as the mean square of the input they multiply
``gptq`` searched scales and error feedback between columns (GPTQ / LDLQ)
``auto`` for every output the best of the three, then scales and codes refined on the layer's output error
======== =========================================================================================================

Each has, in the objective it minimises, no output that is worse than with ``rtn``; with codebooks, no matrix.
"""

from __future__ import annotations

import numpy as np

from bitwright.options import QuantizerName
from bitwright.passes.quantizers.codebook import best_codebook
from bitwright.passes.quantizers.feedback import Feedback, error_feedback
from bitwright.passes.quantizers.fit import fit_groups
from bitwright.passes.quantizers.grid import Floats, Grid, Integers, LookedUp, reciprocal
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.passes.quantizers.objective import damped, row_losses
from bitwright.passes.quantizers.refine import refine
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.passes.quantizers.state import State
from bitwright.scheme import WeightScheme

ROUNDS = 2
"""Rounds of refinement of ``auto``."""

BLOCK_WEIGHTS = 1 << 21
"""Weights at work at a time: the temporaries of a large table would take many times its size."""

BLOCK_ROWS = 1 << 12
"""Rows whose losses are computed at a time."""


def quantize(name: QuantizerName, weights: Floats, scheme: WeightScheme, moment: Floats | None) -> QuantizedMatrix:
    """Quantize float32 [outputs, inputs] to a uniform or codebook scheme.

    Args:
        moment: H = E[x x^T] of the layer's input, float32 [inputs, inputs]; None: all inputs count the same, and error
            feedback has nothing to work with.

    Raises:
        UnsupportedError: a group's scale does not fit half precision.
    """
    nearest = best_codebook(weights, scheme) if scheme.is_codebook else round_to_nearest(weights, scheme)
    if name == "rtn":
        return nearest
    shape = damped(moment) if moment is not None else np.eye(weights.shape[1], dtype=np.float32)
    if not scheme.is_codebook:
        return _by_rows(name, weights, Integers.of(scheme), nearest, shape)
    # One table serves the whole matrix: here it is the matrix that must not get worse, not each of its outputs.
    found = best_codebook(weights, scheme, np.diag(shape).copy())
    if name == "clip":
        shape = np.diag(np.diag(shape))
    elif found.codebook is not None:
        found = _by_rows(name, weights, LookedUp(found.codebook), found, shape)
    losses = [_loss(matrix, weights, scheme, shape) for matrix in (found, nearest)]
    return found if losses[0] <= losses[1] else nearest


def _loss(matrix: QuantizedMatrix, weights: Floats, scheme: WeightScheme, moment: Floats) -> float:
    error = matrix.dequantize(scheme)
    error -= weights
    blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, len(error), BLOCK_ROWS)]
    return sum(float(row_losses(error[rows], moment).sum()) for rows in blocks)


def _by_rows(
    name: QuantizerName, weights: Floats, grid: Grid, nearest: QuantizedMatrix, moment: Floats
) -> QuantizedMatrix:
    """Some rows at a time, each at least as good as in ``nearest``."""
    states = []
    feedback = None if name == "clip" else Feedback.of(moment, nearest.scales.shape[1])
    count = max(BLOCK_WEIGHTS // weights.shape[1], 1)
    for start in range(0, len(weights), count):
        rows = slice(start, start + count)
        zeros = None if nearest.zeros is None else nearest.zeros[rows]
        part = QuantizedMatrix(nearest.codes[rows], nearest.scales[rows], zeros, nearest.codebook)
        states.append(_improved(name, weights[rows], grid, State.of(part, grid), moment, feedback).matrix(grid))
    zero_points = [state.zeros for state in states if state.zeros is not None]
    return QuantizedMatrix(
        np.concatenate([state.codes for state in states]),
        np.concatenate([state.scales for state in states]),
        np.concatenate(zero_points) if zero_points else None,
        grid.codebook,
    )


def _improved(
    name: QuantizerName, weights: Floats, grid: Grid, nearest: State, moment: Floats, feedback: Feedback | None
) -> State:
    groups = nearest.scales.shape[1]
    if feedback is None:
        return searched(weights, grid, groups, moment)
    fed_back = error_feedback(weights, grid, groups, feedback)
    if name == "gptq":
        return _best(weights, moment, [nearest, fed_back])
    best = _best(weights, moment, [nearest, searched(weights, grid, groups, moment), fed_back])
    return refine(best, weights, grid, moment, ROUNDS)


def searched(weights: Floats, grid: Grid, groups: int, moment: Floats) -> State:
    """Round to nearest with the scales of :func:`fit_groups`, weighted by H's diagonal."""
    outputs, inputs = weights.shape
    columns = np.ascontiguousarray(weights.reshape(outputs * groups, -1).T)
    importance = np.tile(np.diag(moment).reshape(groups, -1).T, (1, outputs))
    scales, zeros = fit_groups(columns, importance, grid)
    values = grid.nearest(columns * reciprocal(scales.astype(np.float32)), zeros)
    return State(
        np.ascontiguousarray(values.T).reshape(outputs, inputs),
        scales.reshape(outputs, groups),
        None if zeros is None else zeros.reshape(outputs, groups),
    )


def _best(weights: Floats, moment: Floats, states: list[State]) -> State:
    """Per output the state of least loss; the first of equals."""
    best = states[0]
    losses = row_losses(best.weights - weights, moment)
    for state in states[1:]:
        found = row_losses(state.weights - weights, moment)
        best = state.rows(found < losses, best)
        losses = np.minimum(found, losses)
    return best
