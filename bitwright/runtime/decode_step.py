"""The decode step of ``model.so``: one call per token, outside the VM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitwright.runtime.arrays import aligned_zeros
from bitwright.runtime.artifact import StepRecord
from bitwright.runtime.breakdown import KernelTime, sum_by_name

if TYPE_CHECKING:
    import numpy as np

FUNCTION = "decode_step"


class DecodeStep:
    """The function bound to one weight set, one cache state, and the memory it works in.

    ``logits`` float32 [1, vocab] and ``best`` int64 [1] (the likeliest token, -1 if a logit is not finite) hold the
    results of the last call.
    """

    def __init__(
        self,
        ffi: Any,
        function: Any,
        record: StepRecord,
        vocab: int,
        weights: Sequence[np.ndarray],
        state: Sequence[np.ndarray],
    ) -> None:
        import numpy as np

        self.record = record
        self._function, self._generation = function, 0
        self._keep = (*weights, *state)
        self._tokens = aligned_zeros((1,), "int64")
        self.logits = aligned_zeros((1, vocab), "float32")
        self.best = aligned_zeros((1,), "int64")
        self._ticks = aligned_zeros((len(record.tasks) + 1,), "int64")
        self._first: tuple[float, np.ndarray] | None = None
        arena = aligned_zeros((record.shared_bytes + record.threads * record.private_bytes,), "uint8")
        words = aligned_zeros((record.threads * record.barrier_words,), "int64")
        tables = []
        for arrays in (weights, state):
            table = aligned_zeros((len(arrays),), "uint64")
            table[:] = np.array([array.ctypes.data for array in arrays], dtype=np.uint64)
            tables.append(table)
        buffers = (self._tokens, self.logits, self.best, *tables, arena, words, self._ticks)
        self._arguments = tuple(ffi.from_dlpack(buffer) for buffer in buffers)

    def __call__(self, token: int, position: int, threads: int, *, profile: bool = False) -> None:
        """Append ``token`` at ``position``; the results are in ``logits`` and ``best``."""
        self._tokens[0] = token
        self._generation += 1
        self._function(*self._arguments, position, threads, self._generation, int(profile))

    def profile(self, token: int, position: int, threads: int) -> list[KernelTime]:
        """The time of every kernel in one call, in the order of their first task.

        The time since the first such call gives the length of a cycle; what lies between calls belongs to no kernel.
        """
        if self._first is None:
            self._first = self._profiled(token, position, threads)
        start, ticks = self._profiled(token, position, threads)
        first_start, first_ticks = self._first
        per_cycle = (start - first_start) / float(ticks[0] - first_ticks[0])
        return self._kernel_times(ticks, per_cycle, position + 1)

    def _profiled(self, token: int, position: int, threads: int) -> tuple[float, np.ndarray]:
        """When a profiled call started, and the cycle counter at the start of each task and at the end."""
        start = time.perf_counter()
        self(token, position, threads, profile=True)
        return start, self._ticks.copy()

    def _kernel_times(self, ticks: np.ndarray, per_cycle: float, cached: int) -> list[KernelTime]:
        import numpy as np

        spent = np.diff(ticks).astype(float) * per_cycle
        return sum_by_name(
            [
                KernelTime(kernel, 1, seconds, weights + cached * cache)
                for (kernel, weights, cache), seconds in zip(self.record.tasks, spent.tolist(), strict=True)
            ]
        )
