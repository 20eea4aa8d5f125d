"""Metrics by name, with all that come with the package registered."""

from __future__ import annotations

from bitwright.passes.sensitivity import errors_of_outputs, fisher, gradients_of_weights, measured
from bitwright.passes.sensitivity.metric import Metric, find

BUILT_IN = (fisher, errors_of_outputs, gradients_of_weights, measured)
"""Importing these registers their metrics."""


def metric_named(name: str) -> Metric:
    """Raises UsageError: no metric has the name."""
    return find(name)
