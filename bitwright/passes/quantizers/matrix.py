"""What a quantizer returns, and what it stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.scheme import WeightScheme


@dataclass(frozen=True)
class QuantizedMatrix:
    """Codes of a weight matrix.

    Attributes:
        codes: uint8 [outputs, inputs], each below 2**bits.
        scales: float16 [outputs, groups].
        zeros: uint8 [outputs, groups], or None: the zero point is 2**(bits - 1) everywhere.
        codebook: int8 [2**bits] of a codebook scheme: what a code stands for before scaling. Else None.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    zeros: npt.NDArray[np.uint8] | None
    codebook: npt.NDArray[np.int8] | None = None

    def dequantize(self, scheme: WeightScheme) -> npt.NDArray[np.float32]:
        """(code - zero point) * scale or codebook[code] * scale, float32 [outputs, inputs]."""
        outputs, inputs = self.codes.shape
        groups = self.scales.shape[1]
        grouped = self.codes.reshape(outputs, groups, inputs // groups)
        if self.codebook is not None:
            numbers = self.codebook.astype(np.float32)[grouped]
        else:
            numbers = grouped.astype(np.float32)
            zeros = self.zeros
            numbers -= np.float32(2 ** (scheme.bits - 1)) if zeros is None else zeros[:, :, None].astype(np.float32)
        numbers *= self.scales[:, :, None].astype(np.float32)
        return numbers.reshape(outputs, inputs)


RunRows = QuantizedMatrix | npt.NDArray[np.float32]
"""What a run of a matrix's rows is stored as: codes, or floats."""


def rows_in(run: RunRows) -> int:
    """How many rows a run has."""
    return len(run.codes if isinstance(run, QuantizedMatrix) else run)


Quantizer = Callable[[npt.NDArray[np.float32], WeightScheme, int], QuantizedMatrix]
"""Float rows of one matrix, their scheme, and the number of the first of them, to codes."""
