"""A quantized matrix while quantizers work on it: numbers instead of codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.passes.quantizers.grid import Floats, Grid
from bitwright.passes.quantizers.matrix import QuantizedMatrix


@dataclass(frozen=True)
class State:
    """A matrix as numbers of its grid times scales.

    Attributes:
        values: float32 [outputs, inputs], what the codes stand for in units of the scale.
        scales: float16 [outputs, groups].
        zeros: float32 [outputs, groups], integers, or None.
    """

    values: Floats
    scales: npt.NDArray[np.float16]
    zeros: Floats | None

    @classmethod
    def of(cls, matrix: QuantizedMatrix, grid: Grid) -> State:
        """The numbers of a matrix that is on the grid."""
        zeros = None if matrix.zeros is None else matrix.zeros.astype(np.float32)
        if matrix.codebook is not None:
            return cls(matrix.codebook.astype(np.float32)[matrix.codes], matrix.scales, None)
        zero = np.float32(-grid.ends[0]) if zeros is None else _spread(zeros, matrix.codes.shape[1])
        return cls(matrix.codes.astype(np.float32) - zero, matrix.scales, zeros)

    def matrix(self, grid: Grid) -> QuantizedMatrix:
        """The codes."""
        zeros = None if self.zeros is None else self.zeros.astype(np.uint8)
        wide = None if self.zeros is None else _spread(self.zeros, self.values.shape[1])
        return QuantizedMatrix(grid.codes(self.values, wide), self.scales, zeros, grid.codebook)

    @property
    def weights(self) -> Floats:
        """What the matrix stands for, float32 [outputs, inputs]."""
        return self.values * _spread(self.scales.astype(np.float32), self.values.shape[1])

    def rows(self, chosen: npt.NDArray[np.bool_], other: State) -> State:
        """The rows of ``self`` where ``chosen``, those of ``other`` elsewhere."""
        pick = chosen[:, None]
        zeros = None if self.zeros is None or other.zeros is None else np.where(pick, self.zeros, other.zeros)
        return State(np.where(pick, self.values, other.values), np.where(pick, self.scales, other.scales), zeros)


def _spread(groups: Floats, inputs: int) -> Floats:
    """[outputs, groups] repeated to [outputs, inputs]."""
    return np.repeat(groups, inputs // groups.shape[1], axis=1)
