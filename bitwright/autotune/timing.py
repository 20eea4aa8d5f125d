"""Timing of compiled functions on buffers that they may be called with."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt


def aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Compiled code assumes that a tensor starts at a multiple of 64 bytes, which NumPy does not promise."""
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def median_seconds(function: Any, arguments: tuple[Any, ...], budget: float) -> float:
    """Median time of one call; calls are batched so that the clock and the call cost little."""
    function(*arguments)
    start = time.perf_counter()
    function(*arguments)
    batch = max(1, int(1e-3 / max(time.perf_counter() - start, 1e-7)))
    times: list[float] = []
    deadline = time.perf_counter() + budget
    while len(times) < 5 or time.perf_counter() < deadline:
        start = time.perf_counter()
        for _ in range(batch):
            function(*arguments)
        times.append((time.perf_counter() - start) / batch)
    return statistics.median(times)
