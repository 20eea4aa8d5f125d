"""NumPy oracle of the rotary kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def rope(
    x: Floats, cos: Floats, sin: Floats, positions: NDArray[np.int64], heads: int, *, interleaved: bool = False
) -> Floats:
    """Rotate the first R elements of each head of x[n, heads * D] in pairs; cos and sin are [P, R/2] tables.

    Each pair is the complex number a + ib, multiplied by cos + i sin of its position.
    """
    n, width = x.shape
    half = cos.shape[1]
    y = x.reshape(n, heads, width // heads).astype(np.float64)
    turning = y[..., : 2 * half]
    first, second = (turning[..., 0::2], turning[..., 1::2]) if interleaved else np.split(turning, 2, axis=-1)
    turned = (first + 1j * second) * (cos[positions] + 1j * sin[positions])[:, None, :]
    if interleaved:
        y[..., 0 : 2 * half : 2], y[..., 1 : 2 * half : 2] = turned.real, turned.imag
    else:
        y[..., :half], y[..., half : 2 * half] = turned.real, turned.imag
    return y.reshape(n, width).astype(np.float32)
