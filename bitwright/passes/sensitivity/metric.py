"""The registry of sensitivity metrics, and what a metric may look at.

A metric takes the evidence of one linear layer, its weights and their error, and says what the error of each row of
the matrix costs. Rows are outputs; sums over rows are the cost of a tile, a run or a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitwright.errors import UsageError

Floats = npt.NDArray[np.float32]
Losses = npt.NDArray[np.float64]

ROWS_AT_A_TIME = 2048
"""A table has more rows than its outputs for all tokens fit into memory."""

NATS = "nats per token"
RELATIVE = "relative"
"""Units: an expected divergence, or a number that only compares."""


@dataclass(frozen=True)
class Evidence:
    """What calibration saw of one linear layer y = W x.

    Attributes:
        inputs: float32 [tokens, inputs].
        gradients: of the log-likelihood at outputs; called with a range of rows, gives float32 [tokens, rows].
        divergence: called with an error of the weights, float32 [outputs, inputs]: the divergence that the model has
            when this layer alone has it. Costs a run of the model.
    """

    inputs: Floats
    gradients: Callable[[slice], Floats]
    divergence: Callable[[Floats], float]
    _cache: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        return len(self.inputs)

    def once(self, name: str, compute: Callable[[], float]) -> float:
        """A number that is the same for all errors of the layer."""
        if name not in self._cache:
            self._cache[name] = compute()
        return self._cache[name]


@dataclass(frozen=True)
class Metric:
    """A plugin: ``losses(evidence, weights, error)`` float64 [outputs], its unit, and what it is in one line."""

    name: str
    unit: str
    about: str
    losses: Callable[[Evidence, Floats, Floats], Losses]
    runs_model: bool = False


METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Make a metric known by its name."""
    METRICS[metric.name] = metric
    return metric


def find(name: str) -> Metric:
    """Raises UsageError: no metric has the name."""
    if name not in METRICS:
        raise UsageError(f"'{name}' is not a sensitivity metric", where="--metric", limit=", ".join(sorted(METRICS)))
    return METRICS[name]


def row_blocks(outputs: int) -> Iterator[slice]:
    """Ranges of rows that are looked at together."""
    return (slice(start, min(start + ROWS_AT_A_TIME, outputs)) for start in range(0, outputs, ROWS_AT_A_TIME))
