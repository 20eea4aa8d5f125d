"""Arrays that compiled code can use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT = 64


def aligned_zeros(shape: Sequence[int], dtype: str) -> np.ndarray:
    """A zeroed array at a multiple of 64 bytes, as compiled kernels assume. Pages are touched on first use."""
    import numpy as np

    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
