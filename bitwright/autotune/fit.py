"""Predicts a kernel's time from others of its family: overhead + work / speed, fitted to their measurements.

    seconds = a + b * bytes + c * multiplications + d * outputs          with a, b, c, d >= 0

a is what a call costs, 1/b the bandwidth, 1/c the arithmetic, d what each result costs. The squares of *relative*
errors are minimised (non-negative least squares, Lawson and Hanson 1974, by coordinate descent), so that small
kernels count as much as large ones. The stated error is found by leaving one shape out at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.autotune.workload import Workload
from bitwright.errors import UnsupportedError
from bitwright.runs import parse_weights, runs_of

LEAST_SHAPES = 3
_SWEEPS = 2000

Measurement = tuple[Workload, int, float]
"""Workload, working set in bytes, seconds."""


@dataclass(frozen=True)
class Fit:
    """Coefficients per working set, and the mean relative error of a prediction (leave-one-shape-out)."""

    coefficients: dict[int, npt.NDArray[np.float64]]
    relative_error: float

    def seconds(self, workload: Workload, working_set: int) -> float:
        return float(terms(workload) @ self.coefficients[working_set])


def fit(measurements: Sequence[Measurement], wanted: str) -> Fit:
    """The fit to the measurements of one family.

    Raises:
        UnsupportedError: there are fewer than LEAST_SHAPES different shapes in a working set.
    """
    sets = sorted({size for _, size, _ in measurements})
    shapes = {size: {(w.shape, w.m) for w, s, _ in measurements if s == size} for size in sets}
    if not sets or min(map(len, shapes.values())) < LEAST_SHAPES:
        raise UnsupportedError(
            f"no latency is known for {wanted}",
            limit=f"a prediction needs {LEAST_SHAPES} measured shapes of its kind",
            remedy="measure more shapes with bitwright.tuning.measure_latencies",
        )
    coefficients, errors = {}, []
    for size in sets:
        known = [(w, seconds) for w, s, seconds in measurements if s == size]
        coefficients[size] = _solve(known)
        for left_out in sorted(shapes[size]):
            rest = [(w, seconds) for w, seconds in known if (w.shape, w.m) != left_out]
            solved = _solve(rest)
            errors += [abs(float(terms(w) @ solved) / t - 1) for w, t in known if (w.shape, w.m) == left_out]
    return Fit(coefficients, math.fsum(errors) / len(errors))


def terms(workload: Workload) -> npt.NDArray[np.float64]:
    """(1, bytes read, multiplications, results) of a call."""
    shape, m = workload.shape, workload.m
    if workload.op == "linear":
        outputs, inputs = shape
        nbytes = sum(
            run.scheme.weight.storage_bytes(run.rows, inputs)
            for run in runs_of(parse_weights(workload.scheme), outputs)
        )
        return np.array([1.0, nbytes, m * outputs * inputs, m * outputs], np.float64)
    if workload.op == "attention":
        heads, kv_heads, head_dim, context = shape
        return np.array([1.0, kv_heads * head_dim * context, m * heads * head_dim * context, m * heads * head_dim])
    elements = float(np.prod(shape))
    return np.array([1.0, 0.0, 0.0, m * elements], np.float64)


def _solve(known: Sequence[tuple[Workload, float]]) -> npt.NDArray[np.float64]:
    """Non-negative coefficients that minimise the sum of squared relative errors."""
    rows = np.array([terms(workload) / seconds for workload, seconds in known])
    scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    matrix = rows / scale
    gram, right = matrix.T @ matrix, matrix.sum(axis=0)
    solution = np.zeros(matrix.shape[1])
    for _ in range(_SWEEPS):
        for i in range(solution.size):
            if gram[i, i] > 0:
                solution[i] = max(0.0, solution[i] + (right[i] - gram[i] @ solution) / gram[i, i])
    found: npt.NDArray[np.float64] = solution / scale
    return found
