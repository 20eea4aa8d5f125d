"""Metrics that run the model with one layer changed.

``linearity``: a layer's divergence is proportional to the relative squared error of its weights (Malinovskii et al.
2024, "HIGGS", theorem 1); the coefficient is measured once, with random noise. ``forward_kl`` measures the divergence
of every error, and shares it among rows in proportion to the squared errors of their outputs.
"""

from __future__ import annotations

import numpy as np

from bitwright.passes.sensitivity.errors_of_outputs import output_mse
from bitwright.passes.sensitivity.metric import NATS, Evidence, Floats, Losses, Metric, register

NOISE = 0.05
"""Size of the noise relative to the weights, as a quantizer of five bits has: small enough for a quadratic effect."""


def linearity(evidence: Evidence, weights: Floats, error: Floats) -> Losses:
    """float64 [outputs]"""

    def coefficient() -> float:
        noise = np.random.default_rng(0).standard_normal(weights.shape, dtype=np.float32)
        noise *= NOISE * np.linalg.norm(weights) / np.linalg.norm(noise)
        return evidence.divergence(noise) / NOISE**2

    share = np.square(error, dtype=np.float64).sum(axis=1) / np.square(weights, dtype=np.float64).sum()
    losses: Losses = evidence.once("linearity", coefficient) * share
    return losses


def forward_kl(evidence: Evidence, weights: Floats, error: Floats) -> Losses:
    """float64 [outputs]"""
    share = output_mse(evidence, weights, error)
    total = share.sum()
    losses: Losses = share * (evidence.divergence(error) / total) if total else share
    return losses


register(Metric("linearity", NATS, "measured coefficient times relative squared error of weights", linearity, True))
register(Metric("forward_kl", NATS, "measured divergence with one layer quantized", forward_kl, True))
