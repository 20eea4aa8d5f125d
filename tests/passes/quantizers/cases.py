"""Matrices with inputs that are correlated and uneven, as those of language models are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def weights_and_moment(outputs: int, inputs: int, seed: int = 0, tokens: int = 512) -> tuple[Floats, Floats]:
    """W float32 [outputs, inputs], and E[x x^T] float32 [inputs, inputs] of ``tokens`` correlated inputs."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    x = random.standard_normal((tokens, inputs)) @ mixing * np.exp(random.standard_normal(inputs) / 2)
    weights = random.standard_normal((outputs, inputs)) * np.exp(random.standard_normal(inputs) / 3)
    return weights.astype(np.float32), (x.T @ x / tokens).astype(np.float32)
