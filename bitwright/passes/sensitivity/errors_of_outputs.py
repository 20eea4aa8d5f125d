"""Metrics that see a layer alone: the squared error of its outputs, whole or by the diagonal of the inputs' moments.

``output_mse`` is the mean of |D x|^2; ``hessian_diagonal`` drops products of different inputs, sum D_oi^2 E[x_i^2], the
importance of "importance matrices".
"""

from __future__ import annotations

import numpy as np

from bitwright.passes.sensitivity.metric import RELATIVE, Evidence, Floats, Losses, Metric, register


def output_mse(evidence: Evidence, _weights: Floats, error: Floats) -> Losses:
    """Mean square of each output's error, float64 [outputs]."""
    moment = evidence.inputs.T @ evidence.inputs / np.float32(evidence.tokens)
    losses: Losses = np.einsum("oi,oi->o", error @ moment, error, dtype=np.float64)
    return losses


def hessian_diagonal(evidence: Evidence, _weights: Floats, error: Floats) -> Losses:
    """Squared errors of weights times the mean square of their input, float64 [outputs]."""
    square = np.mean(np.square(evidence.inputs), axis=0, dtype=np.float64)
    losses: Losses = np.square(error, dtype=np.float64) @ square
    return losses


register(Metric("output_mse", RELATIVE, "mean squared error of the layer's outputs", output_mse))
register(
    Metric("hessian_diagonal", RELATIVE, "squared errors of weights times mean squares of inputs", hessian_diagonal)
)
