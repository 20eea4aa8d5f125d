"""NumPy oracles of the elementwise kernels, computed in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def _sigmoid(x: Doubles) -> Doubles:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)), np.float64)


def _gelu_erf(x: Doubles) -> Doubles:
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    return np.asarray(0.5 * x * erfc(-x / math.sqrt(2)), np.float64)


def _gelu_tanh(x: Doubles) -> Doubles:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), np.float64)


_FUNCTIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu_erf": _gelu_erf,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": lambda x: np.asarray(np.tanh(x), np.float64),
    "sigmoid": _sigmoid,
}


def apply(function: str, x: Floats) -> Floats:
    """The activation named as in :data:`bitwright.codegen.elementwise.FUNCTIONS`."""
    return _FUNCTIONS[function](x.astype(np.float64)).astype(np.float32)


def glu(function: str, gate: Floats, up: Floats) -> Floats:
    """function(gate) * up."""
    return (_FUNCTIONS[function](gate.astype(np.float64)) * up).astype(np.float32)
