"""Lower the objective of a quantized matrix further: scales in closed form, then codes one column at a time.

With the numbers C of the codes, the objective is quadratic in a row's scales: with M [inputs, groups] that holds the
row of C cut into groups, A = M^T H M and b = M^T H w, the best scales solve A s = b. Given the scales, the best code of
a column with all others fixed is q_j - ((Q - W) H)_j / H_jj rounded to the grid: coordinate descent, as in QuantEase
(Behdin et al. 2023). Rows are independent; each keeps a step only if its own objective, with scales as stored, fell.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitwright.passes.quantizers.grid import Floats, Grid, reciprocal
from bitwright.passes.quantizers.objective import row_losses
from bitwright.passes.quantizers.rtn import nearest_half
from bitwright.passes.quantizers.state import State

BLOCK = 32
RIDGE = 1e-6
"""Added to the diagonal of A, as a share of it: groups of equal inputs make A singular."""


def refine(state: State, weights: Floats, grid: Grid, moment: Floats, rounds: int) -> State:
    """``rounds`` times best scales, then best codes; float32 weights [outputs, inputs], H [inputs, inputs]."""
    losses = row_losses(state.weights - weights, moment)
    for _ in range(rounds):
        for step in (best_scales, descend):
            tried = step(state, weights, grid, moment)
            found = row_losses(tried.weights - weights, moment)
            state = tried.rows(found < losses, state)
            losses = np.minimum(found, losses)
    return state


def best_scales(state: State, weights: Floats, grid: Grid, moment: Floats) -> State:
    """The scales that minimise the objective with the codes as they are."""
    outputs, groups = state.scales.shape
    cut = state.values.reshape(outputs, groups, -1)
    system = np.empty((outputs, groups, groups))
    for group in range(groups):
        rows = slice(group * cut.shape[2], (group + 1) * cut.shape[2])
        system[:, group] = np.einsum("ogi,ogi->og", (cut[:, group] @ moment[rows]).reshape(cut.shape), cut)
    right = np.einsum("ogi,ogi->og", (weights @ moment).reshape(cut.shape), cut).astype(np.float64)
    diagonal = np.einsum("ogg->og", system)
    empty = diagonal <= 0
    diagonal *= 1 + RIDGE
    diagonal[empty] = 1
    scales = np.linalg.solve(system, right[..., None])[..., 0]
    return replace(state, scales=np.where(empty, state.scales, nearest_half(scales)))


def descend(state: State, weights: Floats, grid: Grid, moment: Floats) -> State:
    """One sweep of coordinate descent over the codes with the scales as they are."""
    inputs = weights.shape[1]
    size = inputs // state.scales.shape[1]
    scales = np.ascontiguousarray(state.scales.T.astype(np.float32))
    inverse = reciprocal(scales)
    zeros = None if state.zeros is None else np.ascontiguousarray(state.zeros.T)
    values = np.ascontiguousarray(state.values.T)
    gradient = moment @ np.ascontiguousarray((state.weights - weights).T)  # [inputs, outputs]
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        changes = np.zeros((stop - start, values.shape[1]), np.float32)
        for column in range(start, stop):
            group, done = column // size, column - start
            slope = gradient[column] + moment[start:column, column] @ changes[:done]
            step = slope / moment[column, column] * inverse[group]
            wanted = grid.nearest(values[column] - step, None if zeros is None else zeros[group])
            changes[done] = (wanted - values[column]) * scales[group]
            values[column] = wanted
        gradient += moment[:, start:stop] @ changes
    return replace(state, values=np.ascontiguousarray(values.T))
