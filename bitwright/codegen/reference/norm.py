"""NumPy oracles of the normalisation kernels, computed in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def rms_norm(x: Floats, gain: Floats, eps: float, bias: Floats | None = None) -> Floats:
    """x / sqrt(mean(x^2) + eps) * gain [+ bias] over the last axis (Zhang and Sennrich 2019)."""
    wide = x.astype(np.float64)
    y = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps) * gain
    return np.asarray(y if bias is None else y + bias, np.float32)


def layer_norm(x: Floats, gain: Floats, eps: float, bias: Floats | None = None) -> Floats:
    """(x - mean) / sqrt(var + eps) * gain [+ bias] over the last axis (Ba et al. 2016)."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    y = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * gain
    return np.asarray(y if bias is None else y + bias, np.float32)
