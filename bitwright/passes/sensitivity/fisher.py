"""Expected divergence by the Fisher information at outputs: the default metric.

An error D of the weights changes the outputs of token t by d_t = D x_t, and the divergence summed over all predictions
by 1/2 d^T F d with F = E[g g^T], g the gradient of the log-likelihood of sampled labels. With the diagonal of F, the
sum over tokens and outputs of 1/2 g^2 d^2, per token, is the expected divergence: exact in expectation where errors of
different outputs and tokens are uncorrelated.
"""

from __future__ import annotations

import numpy as np

from bitwright.passes.sensitivity.metric import NATS, Evidence, Floats, Losses, Metric, register, row_blocks


def squared_effects(evidence: Evidence, error: Floats) -> Losses:
    """1/2 sum over tokens of (g d)^2 per token, float64 [outputs]."""
    losses = np.empty(len(error))
    for rows in row_blocks(len(error)):
        effect = evidence.inputs @ error[rows].T
        effect *= evidence.gradients(rows)
        losses[rows] = np.einsum("to,to->o", effect, effect, dtype=np.float64)
    return losses / (2 * evidence.tokens)


FISHER = register(
    Metric(
        "fisher",
        NATS,
        "1/2 sum (dL/dY * error of Y)^2, labels sampled from the model",
        lambda evidence, _weights, error: squared_effects(evidence, error),
    )
)
