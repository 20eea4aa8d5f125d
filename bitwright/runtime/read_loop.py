"""The read bandwidth of this machine, measured with the loop that every artifact carries."""

from __future__ import annotations

import time

from bitwright.runtime.arrays import aligned_zeros
from bitwright.runtime.module import CompiledModule

OUT_WORDS = 8
"""uint64 results per thread of ``read_bandwidth``."""

_MIN_READ_SECONDS = 2e-3
_MIN_READ_BYTES = 1 << 16


class ReadLoop:
    """The artifact's ``read_bandwidth(buffer u8[n], out u64[threads * 8])`` on a buffer of its own."""

    def __init__(self, module: CompiledModule, size: int, threads: int) -> None:
        self._function = module.library_function("read_bandwidth")
        # Tiny models: below this the call itself would be measured.
        self._size = max(size, _MIN_READ_BYTES * threads)
        self._module = module
        buffer = aligned_zeros((self._size,), "uint8")
        buffer.fill(1)  # written, so that every page exists
        out = aligned_zeros((threads * OUT_WORDS,), "uint64")
        self._arguments = (module.tensor(buffer), module.tensor(out))
        self._read()

    def bytes_per_second(self) -> float:
        """One sample, of reads that take some milliseconds together. A first read, to fill the caches, is not timed."""
        self._read()
        count, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < _MIN_READ_SECONDS or count < 3:
            self._read()
            count += 1
        return self._size * count / seconds

    def _read(self) -> None:
        self._function(*self._arguments)
