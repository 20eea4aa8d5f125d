"""Normalisations over the trailing dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.frontend.interpreter.registry import op


def _trailing(x: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(range(axis % x.dim(), x.dim()))


def _require_float_stash(stash_type: int) -> None:
    if stash_type != 1:
        raise ValueError(f"stash_type is {stash_type}; only 1 (float32) is computed")


@op("RMSNormalization", 23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * scale, over dimensions ``axis`` and later."""
    _require_float_stash(stash_type)
    return x * torch.rsqrt(x.square().mean(_trailing(x, axis), keepdim=True) + epsilon) * scale


@op("LayerNormalization", 17)
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, the mean, and 1 / sqrt(variance + epsilon)."""
    _require_float_stash(stash_type)
    dims = _trailing(x, axis)
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(dims, keepdim=True) + epsilon)
    y = centred * inverse * scale
    return y if bias is None else y + bias, mean, inverse
