"""What quantizers that know their input minimise: the expected squared error of the layer's outputs.

For weights W [outputs, inputs], quantized to Q, and H = E[x x^T] of the layer's input x, that is
tr((Q - W) H (Q - W)^T): a sum over outputs of quadratic forms (Nagel et al. 2020, "Up or Down?", eq. 11; Frantar et al.
2023, "GPTQ", eq. 1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

DAMPING = 0.01
"""Added to H's diagonal, as a share of its mean: the value of the GPTQ paper."""


def damped(moment: Floats, damping: float = DAMPING) -> Floats:
    """H + damping * mean(diag H) * I, positive definite; the identity where the layer reads only zeros."""
    mean = float(np.diag(moment).mean(dtype=np.float64))
    if mean == 0:
        return np.eye(len(moment), dtype=np.float32)
    result: Floats = moment.astype(np.float32)
    result[np.diag_indices_from(result)] += np.float32(damping * mean)
    return result


def conditional(moment: Floats) -> Doubles:
    """1 / (H^-1)_jj of damped H, float64 [inputs]: what an error of column j costs when all others make up for it.

    It is H_jj less what the other inputs predict of input j, and never above H_jj.
    """
    inverse = np.linalg.inv(damped(moment).astype(np.float64))
    costs: Doubles = 1 / np.diag(inverse)
    return costs


def row_losses(error: Floats, moment: Floats) -> Doubles:
    """e H e^T of each row e of ``error`` [outputs, inputs]: float64 [outputs]."""
    losses: Doubles = np.einsum("ij,ij->i", error @ moment, error, dtype=np.float64)
    return losses


def output_error(weights: Floats, quantized: Floats, moment: Floats) -> float:
    """tr((Q - W) H (Q - W)^T) / tr(W H W^T): the error of the outputs relative to the outputs, 0 for exact."""
    signal = float(row_losses(weights, moment).sum())
    return float(row_losses(quantized - weights, moment).sum()) / signal if signal else 0.0
