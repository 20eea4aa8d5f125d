"""Cut the tiles of matrices into few runs of one choice each, at least cost: dynamic programming over the tiles.

best[r, k] is the least cost of the tiles so far in r + 1 runs, the last with choice k; a tile stays in the run or
begins one behind the best of all choices with one run less. Exact; many matrices at a time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def best_runs(costs: Doubles, starts: Doubles, max_runs: int) -> Numbers:
    """The choice of every tile, int64 [matrices, tiles].

    Args:
        costs: float64 [matrices, tiles, choices].
        starts: float64 [matrices, choices], of beginning a run; not negative.
        max_runs: of a matrix. Ties go to fewer runs, then to the first choice.
    """
    matrices, tiles, _ = costs.shape
    if tiles == 1:
        first: Numbers = (costs[:, 0] + starts).argmin(axis=1)[:, None].astype(np.int64)
        return first
    best = np.full((matrices, max_runs, costs.shape[2]), np.inf)
    best[:, 0] = costs[:, 0] + starts
    begun = np.zeros((tiles, *best.shape), bool)
    before = np.zeros((tiles, matrices, max_runs), np.int64)
    for tile in range(1, tiles):
        if max_runs > 1:
            previous = best[:, :-1].argmin(axis=2)
            before[tile, :, 1:] = previous
            fresh = np.take_along_axis(best[:, :-1], previous[..., None], 2) + starts[:, None, :]
            begun[tile, :, 1:] = fresh < best[:, 1:]
            best[:, 1:] = np.minimum(best[:, 1:], fresh)
        best += costs[:, tile, None, :]
    return _traced(best, begun, before)


def _traced(best: Doubles, begun: npt.NDArray[np.bool_], before: Numbers) -> Numbers:
    """Follow the decisions back from the last tile."""
    tiles, matrices = begun.shape[:2]
    number = np.arange(matrices)
    flat = best.reshape(matrices, -1).argmin(axis=1)
    run, choice = np.divmod(flat, best.shape[2])
    choices = np.empty((matrices, tiles), np.int64)
    for tile in range(tiles - 1, -1, -1):
        choices[:, tile] = choice
        fresh = begun[tile, number, run, choice]
        choice = np.where(fresh, before[tile, number, run], choice)
        run = run - fresh
    return choices
