"""Rotation by an orthonormal matrix of Kronecker products (``bitwright.hadamard``)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitwright.frontend.interpreter.registry import op
from bitwright.hadamard import signs

LARGEST_FACTOR = 64
"""A power of two is multiplied as factors of at most this order."""


@op("Rotate", 1, domain="bitwright")
def rotate(x: Tensor, *, blocks: int, order: int, power: int, transposed: int = 0) -> Tensor:
    """x R (or x R^T), x [..., blocks * order * power]."""
    small = torch.tensor(signs(order), dtype=x.dtype, device=x.device)
    factors = [small.T if transposed else small]
    while power > 1:
        part = min(power, LARGEST_FACTOR)
        factors.append(_sylvester(part, x))
        power //= part
    y = x
    inner = 1
    for factor in reversed(factors):
        size = len(factor)
        y = (factor.T @ y.reshape(-1, size, inner)).reshape(x.shape)
        inner *= size
    return y / float(np.sqrt(inner))


def _sylvester(order: int, like: Tensor) -> Tensor:
    matrix = torch.ones((1, 1), dtype=like.dtype, device=like.device)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
