"""The peak of byte dot products, measured with the loop that every artifact carries."""

from __future__ import annotations

import time

from bitwright.runtime.arrays import aligned_zeros
from bitwright.runtime.artifact import PeakRecord
from bitwright.runtime.module import CompiledModule

_MIN_SECONDS = 2e-3


class MultiplyLoop:
    """The artifact's ``dot_peak(codes u8[3, 4 * lanes], activations i8[64, 16], out i32[threads, lanes])``."""

    def __init__(self, module: CompiledModule, record: PeakRecord, threads: int) -> None:
        self._function = module.library_function("dot_peak")
        self._macs = record.macs * threads
        shapes = (((3, 4 * record.lanes), "uint8"), ((64, 16), "int8"), ((threads, record.lanes), "int32"))
        self._arguments = tuple(module.tensor(aligned_zeros(shape, dtype)) for shape, dtype in shapes)

    def macs_per_second(self) -> float:
        """One sample, of some milliseconds; a first call, which brings the processor up to speed, is not timed."""
        self._function(*self._arguments)
        count, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < _MIN_SECONDS or count < 3:
            self._function(*self._arguments)
            count += 1
        return self._macs * count / seconds
