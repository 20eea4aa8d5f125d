"""Metrics from the gradients of the weights.

``fisher_trace``: 1/2 of the mean of a row's diagonal Fisher information times the squared error of its weights, as
HAWQ-V2 (Dong et al. 2020) uses the trace of the Hessian. ``first_order``: |gradient times error|, the first term of the
Taylor series, of labels that are sampled: what is left of it when it should vanish.
"""

from __future__ import annotations

import numpy as np

from bitwright.passes.sensitivity.metric import NATS, RELATIVE, Evidence, Floats, Losses, Metric, register, row_blocks


def fisher_trace(evidence: Evidence, _weights: Floats, error: Floats) -> Losses:
    """float64 [outputs]"""
    square = np.square(evidence.inputs).sum(axis=1, dtype=np.float64)
    losses = np.empty(len(error))
    for rows in row_blocks(len(error)):
        trace = square @ np.square(evidence.gradients(rows), dtype=np.float64)
        losses[rows] = trace * np.square(error[rows], dtype=np.float64).mean(axis=1)
    return losses / (2 * evidence.tokens)


def first_order(evidence: Evidence, _weights: Floats, error: Floats) -> Losses:
    """float64 [outputs]"""
    losses = np.empty(len(error))
    for rows in row_blocks(len(error)):
        gradient = evidence.gradients(rows).T @ evidence.inputs
        losses[rows] = np.abs(np.einsum("oi,oi->o", gradient, error[rows], dtype=np.float64))
    return losses / evidence.tokens


register(
    Metric("fisher_trace", NATS, "trace of the weights' Fisher information times their squared error", fisher_trace)
)
register(Metric("first_order", RELATIVE, "|gradient of the weights * error|", first_order))
