"""Memory to measure kernels in: one block of numbers that are harmless whatever they are read as.

Every byte is such that no half or single precision number made of these bytes is infinite, NaN or subnormal, so
codes, scales, activations and caches of any kernel can be cut out of it. It is larger than the last cache level; what
is cut out *cold* moves through all of it, so that it has left the caches when it is read again, as the weights of a
model have. Scales of activations have every mantissa: kernels look products up by them.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.quantized_rows import LEVELS
from bitwright.errors import UnsupportedError

_ALIGNMENT = 64
_PATTERN_BYTES = 1 << 20
LEAST_BYTES = 64 << 20
MOST_BYTES = 512 << 20
HOT_BYTES = 48 << 20
SCALE = "scale"
"""What names of scales of activations begin with."""


def arena_bytes(caches: Mapping[str, int]) -> int:
    """Four times the last cache level, within bounds: little of it survives a round in cache."""
    return min(max(4 * max(caches.values(), default=0), LEAST_BYTES), MOST_BYTES)


class Arena:
    """Tensors to read and write.

    Args:
        nbytes: of the part that cold tensors are cut from.
    """

    def __init__(self, nbytes: int) -> None:
        self._bytes = _pages(nbytes + HOT_BYTES)
        # High bytes 0x20 ... 0x3b of either sign: half precision exponents 8 to 14, single precision 64 to 119.
        pattern = np.random.default_rng(0).integers(0x20, 0x3C, _PATTERN_BYTES, np.uint8)
        pattern |= np.random.default_rng(1).integers(0, 2, _PATTERN_BYTES, np.uint8) << 7
        for first in range(0, self._bytes.size, pattern.size):
            part = self._bytes[first : first + pattern.size]
            part[:] = pattern[: part.size]
        self._pattern = pattern
        self._end = nbytes
        self.nbytes = nbytes
        self._cold = 0
        self._hot = nbytes

    def use(self, nbytes: int) -> None:
        """Let cold tensors go round in only so many bytes: the weights and caches of a model of that size.

        They go on where they were: what was read last comes last.
        """
        if not 0 < nbytes <= self._end:
            raise UnsupportedError(f"a working set of {nbytes} bytes", limit=f"1 to {self._end}", where="arena")
        self.nbytes = nbytes

    def cold(self, spec: TensorSpec) -> npt.NDArray[Any]:
        """A tensor that comes from memory: the next piece, from the beginning again at the end.

        Raises:
            UnsupportedError: it is larger than the whole.
        """
        if spec.nbytes > self.nbytes:
            raise UnsupportedError(
                f"a tensor of {spec.nbytes} bytes is too large to be measured",
                where=spec.name,
                limit=f"{self.nbytes} bytes",
            )
        if self._cold + spec.nbytes > self.nbytes:
            self._cold = 0
        start, self._cold = self._cold, _round_up(self._cold + spec.nbytes)
        return self._view(start, spec)

    def hot(self, spec: TensorSpec) -> npt.NDArray[Any]:
        """A tensor with a place of its own, which stays in cache when it is small."""
        if self._hot + spec.nbytes > self._bytes.size:
            raise UnsupportedError("the tensors of a kernel are too large to be measured", limit=f"{HOT_BYTES} bytes")
        start, self._hot = self._hot, _round_up(self._hot + spec.nbytes)
        self._bytes[start : self._hot] = np.resize(self._pattern, self._hot - start)  # kernels may have written there
        view = self._view(start, spec)
        if spec.dtype == "float32" and spec.name.startswith(SCALE):
            view[...] = 1 + np.random.default_rng(2).integers(0, LEVELS, view.shape) / LEVELS
        return view

    def release(self) -> None:
        """Forget the hot tensors: their places are given out again."""
        self._hot = self._end

    def _view(self, start: int, spec: TensorSpec) -> npt.NDArray[Any]:
        return self._bytes[start : start + spec.nbytes].view(spec.dtype).reshape(spec.shape)


def aligned_zeros(count: int, dtype: str) -> npt.NDArray[Any]:
    """``count`` zeros at a multiple of 64 bytes, as compiled kernels assume."""
    nbytes = count * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype)


def _pages(nbytes: int) -> npt.NDArray[np.uint8]:
    """Memory in huge pages where there are any, as sessions keep weights in (docs/decisions.md, 18)."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
