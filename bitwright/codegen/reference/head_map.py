"""NumPy oracle of the head map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def head_map(x: Floats, matrices: Floats | NDArray[np.float16], shift: Floats | None = None) -> Floats:
    """x[n, heads * D] times matrices[groups, D, D], plus shift[groups, D]: see ``codegen.head_map``."""
    n, (groups, size, _) = len(x), matrices.shape
    y = np.einsum("nged,gdf->ngef", x.reshape(n, groups, -1, size).astype(np.float64), matrices.astype(np.float64))
    if shift is not None:
        y = y + shift[:, None, :]
    result: Floats = y.reshape(n, -1).astype(np.float32)
    return result
