"""Matrices that are quantized already, in the place of a quantizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.passes.quantizers.matrix import QuantizedMatrix, Quantizer, RunRows, rows_in
from bitwright.program import Parameter
from bitwright.scheme import WeightScheme


@dataclass(frozen=True)
class ReadyMatrices:
    """Called with a parameter, gives what hands out its codes.

    Attributes:
        matrices: name of a weight in the model to the runs of its rows.
        otherwise: quantizes what is not among them.
    """

    matrices: Mapping[str, tuple[RunRows, ...]]
    otherwise: Callable[[Parameter], Quantizer]

    def __call__(self, parameter: Parameter) -> Quantizer:
        names = parameter.parts or (parameter.name,)
        if not all(name in self.matrices for name in names):
            return self.otherwise(parameter)
        runs = [run for name in names for run in self.matrices[name]]

        def rows(weights: npt.NDArray[np.float32], _scheme: WeightScheme, first: int) -> QuantizedMatrix:
            return rows_of(runs, first, len(weights))

        return rows


def rows_of(runs: Iterable[RunRows], first: int, count: int) -> QuantizedMatrix:
    """Rows ``first`` to ``first + count`` of stacked runs; all of these rows have one scheme of codes."""
    parts, start = [], 0
    for run in runs:
        rows = slice(max(first - start, 0), max(first + count - start, 0))
        if isinstance(run, QuantizedMatrix) and len(run.codes[rows]):
            parts.append((run, rows))
        start += rows_in(run)
    zeros = [run.zeros[rows] for run, rows in parts if run.zeros is not None]
    return QuantizedMatrix(
        np.concatenate([run.codes[rows] for run, rows in parts]),
        np.concatenate([run.scales[rows] for run, rows in parts]),
        np.concatenate(zeros) if zeros else None,
        parts[0][0].codebook,
    )
