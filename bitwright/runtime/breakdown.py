"""Where the time of a decode step or of a prompt chunk goes: in which kernel, and outside of all of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KernelTime:
    """All calls of one kernel in one step.

    Attributes:
        name: the kernel's name.
        calls: how often it runs.
        seconds: time of these calls together, waiting for other threads included.
        nbytes: bytes of weights and cache that they read, each tensor once a call.
    """

    name: str
    calls: int
    seconds: float
    nbytes: int

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Breakdown:
    """One step, taken apart.

    Attributes:
        test: ``tg1``, or ``pp256`` for a chunk of 256 tokens.
        depth: tokens in the cache before it.
        threads: it ran on.
        seconds: of the whole step as a caller sees it, without any profiling.
        kernels: in the order of their first call.
        bandwidth: bytes per second of the read loop on as many bytes.
        samples: of which ``seconds`` is the median.
    """

    test: str
    depth: int
    threads: int
    seconds: float
    kernels: tuple[KernelTime, ...]
    bandwidth: float
    samples: tuple[float, ...] = ()

    @property
    def outside(self) -> float:
        """Seconds outside kernels: Python, calls into the library, starting threads, the VM.

        A difference of two measurements: noise can make it negative.
        """
        return self.seconds - sum(kernel.seconds for kernel in self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """An entry of ``profiles`` in ``bench --json``."""
        return {
            "test": self.test,
            "depth": self.depth,
            "threads": self.threads,
            "seconds": self.seconds,
            "read_bandwidth": self.bandwidth,
            "outside_kernels": {"seconds": self.outside, "share": self.outside / self.seconds},
            "kernels": [
                {
                    "name": kernel.name,
                    "calls": kernel.calls,
                    "seconds": kernel.seconds,
                    "share": kernel.seconds / self.seconds,
                    "bytes": kernel.nbytes,
                    "bytes_per_second": kernel.bytes_per_second,
                    "roofline_fraction": kernel.bytes_per_second / self.bandwidth,
                }
                for kernel in self.kernels
            ],
        }


def median_times(runs: Sequence[Sequence[KernelTime]]) -> tuple[KernelTime, ...]:
    """Each kernel's median over several runs of the same step."""
    seconds: dict[str, list[float]] = {}
    for kernel in (kernel for run in runs for kernel in run):
        seconds.setdefault(kernel.name, []).append(kernel.seconds)
    return tuple(
        KernelTime(kernel.name, kernel.calls, statistics.median(seconds[kernel.name]), kernel.nbytes)
        for kernel in runs[0]
    )


def sum_by_name(calls: Sequence[KernelTime]) -> list[KernelTime]:
    """Calls one by one, as one entry per kernel."""
    totals: dict[str, KernelTime] = {}
    for call in calls:
        before = totals.get(call.name, KernelTime(call.name, 0, 0.0, 0))
        totals[call.name] = KernelTime(
            call.name, before.calls + call.calls, before.seconds + call.seconds, before.nbytes + call.nbytes
        )
    return list(totals.values())
