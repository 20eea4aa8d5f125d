"""The decode step of ``model.so``: one call per token, outside the VM."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitwright.runtime.arrays import aligned_zeros
from bitwright.runtime.artifact import StepRecord

if TYPE_CHECKING:
    import numpy as np

FUNCTION = "decode_step"


@dataclass(frozen=True)
class TaskTime:
    """Time of all tasks of one kernel in a step, waiting for other threads included.

    Attributes:
        kernel: its name.
        calls: tasks it runs in.
        seconds: the first thread's time in them.
        nbytes: bytes of weights that they read.
    """

    kernel: str
    calls: int
    seconds: float
    nbytes: int


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

    def profile(self, token: int, position: int, threads: int) -> tuple[float, list[TaskTime]]:
        """Seconds of one call, and of its kernels by name, in the order of their first task."""
        start = time.perf_counter()
        self(token, position, threads, profile=True)
        seconds = time.perf_counter() - start
        return seconds, self._task_times(seconds)

    def _task_times(self, seconds: float) -> list[TaskTime]:
        import numpy as np

        cycles = np.diff(self._ticks).astype(float)
        per_cycle = seconds / max(float(cycles.sum()), 1.0)
        times: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])
        for (kernel, nbytes), spent in zip(self.record.tasks, cycles, strict=True):
            entry = times[kernel]
            entry[0], entry[1], entry[2] = entry[0] + 1, entry[1] + spent * per_cycle, entry[2] + nbytes
        return [TaskTime(kernel, int(calls), spent, int(size)) for kernel, (calls, spent, size) in times.items()]
