"""Error feedback: columns are rounded one after another, each corrected for the errors of those before it.

LDLQ of Chee et al. 2023 ("QuIP", section 3), shown there to be the same as GPTQ (Frantar et al. 2023). With
H = (F + I) D (F + I)^T, F strictly upper triangular and D diagonal, column j is rounded as
q_j = round(w_j + (W - Q)[:, :j] F[:j, j]), and the objective becomes the sum over columns of D_j times the squared
rounding errors: D_j is the importance with which a group's scale is fitted, to the weights that will be rounded.

Columns are taken in falling order of H's diagonal, whole groups at a time, so that a group's scale is still chosen for
weights that have all corrections from outside the group and nothing is reordered at run time (group-aware reordering:
Gafni et al. 2025, "Dual Precision Quantization").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.passes.quantizers.fit import fit_groups
from bitwright.passes.quantizers.grid import Floats, Grid, reciprocal
from bitwright.passes.quantizers.state import State

BLOCK = 32
"""Columns between two matrix products."""


@dataclass(frozen=True)
class Feedback:
    """What error feedback needs to know of H, the same for all rows of a matrix.

    Attributes:
        order: int64 [inputs], the columns as they are rounded.
        factor: F float32 [inputs, inputs] in that order.
        importance: the diagonal of D, float32 [inputs].
    """

    order: npt.NDArray[np.int64]
    factor: Floats
    importance: Floats

    @classmethod
    def of(cls, moment: Floats, groups: int) -> Feedback:
        """For H float32 [inputs, inputs], positive definite, and ``groups`` scales a row."""
        order = column_order(np.diag(moment), len(moment) // groups)
        return cls(order, *factors(moment[np.ix_(order, order)]))


def error_feedback(weights: Floats, grid: Grid, groups: int, by: Feedback) -> State:
    """Quantize float32 [outputs, inputs], ``groups`` scales a row."""
    outputs, inputs = weights.shape
    size = inputs // groups
    order, importance = by.order, by.importance
    work = _Columns(np.ascontiguousarray(weights.T[order]), by.factor)
    scales = np.empty((groups, outputs), np.float16)
    zeros = None if grid.symmetric else np.empty((groups, outputs), np.float32)
    for start in range(0, inputs, size):
        group = slice(start, start + size)
        corrected = work.corrected(group)
        place = order[start] // size
        scales[place], zero = fit_groups(work.expected(group, corrected), importance[group, None], grid)
        if zeros is not None and zero is not None:
            zeros[place] = zero
        work.round(group, corrected, scales[place], zero, grid)
    values = np.empty_like(work.values)
    values[order] = work.values
    return State(
        np.ascontiguousarray(values.T), np.ascontiguousarray(scales.T), None if zeros is None else zeros.T.copy()
    )


@dataclass
class _Columns:
    """A matrix at work, [inputs, outputs]: a column of W is contiguous.

    Attributes:
        weights: in the order of rounding.
        feedback: F [inputs, inputs].
    """

    weights: Floats
    feedback: Floats

    def __post_init__(self) -> None:
        self.residual = np.zeros_like(self.weights)
        self.values = np.empty_like(self.weights)

    def corrected(self, group: slice) -> Floats:
        """The weights of ``group`` with the feedback of all columns before it."""
        before = slice(0, group.start)
        result: Floats = self.weights[group] + self.feedback[before, group].T @ self.residual[before]
        return result

    def expected(self, group: slice, corrected: Floats) -> Floats:
        """What will be rounded if rounding inside the group adds no error: there, too, corrections beget corrections.

        With c the feedback from before the group, column k gets d_k = c_k - sum of d_i F_ik over the group's i < k.
        """
        if group.start == 0:
            return corrected
        inside = np.eye(len(corrected), dtype=np.float32) + self.feedback[group, group]
        result: Floats = self.weights[group] + np.linalg.solve(inside.T, corrected - self.weights[group])
        return result

    def round(
        self, group: slice, corrected: Floats, scales: npt.NDArray[np.float16], zeros: Floats | None, grid: Grid
    ) -> None:
        """Round the columns of one group; ``corrected``: with the feedback of all columns before the group."""
        wide = scales.astype(np.float32)
        inverse = reciprocal(wide)
        for start in range(group.start, group.stop, BLOCK):
            stop = min(start + BLOCK, group.stop)
            block = corrected[start - group.start : stop - group.start]
            if start > group.start:
                inside = slice(group.start, start)
                block = block + self.feedback[inside, start:stop].T @ self.residual[inside]
            for column in range(start, stop):
                wanted = block[column - start] + self.feedback[start:column, column] @ self.residual[start:column]
                self.values[column] = grid.nearest(wanted * inverse, zeros)
                self.residual[column] = self.weights[column] - self.values[column] * wide


def column_order(diagonal: Floats, size: int) -> npt.NDArray[np.int64]:
    """Columns in groups of ``size``: groups by falling sum of ``diagonal``, columns inside by falling ``diagonal``."""
    grouped = diagonal.reshape(-1, size)
    groups = np.argsort(-grouped.sum(axis=1), kind="stable")
    inside = np.argsort(-grouped[groups], axis=1, kind="stable")
    return (groups[:, None] * size + inside).reshape(-1)


def factors(moment: Floats) -> tuple[Floats, Floats]:
    """F float32 [n, n] strictly upper triangular and the diagonal of D float32 [n] with H = (F + I) D (F + I)^T."""
    # A Cholesky factor of the reversed matrix, reversed again, is upper triangular.
    upper = np.linalg.cholesky(moment[::-1, ::-1].astype(np.float64))[::-1, ::-1]
    diagonal = np.diag(upper)
    return np.triu(upper / diagonal, 1).astype(np.float32), np.square(diagonal).astype(np.float32)
