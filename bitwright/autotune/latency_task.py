"""What the measuring process does for a latency table: one workload in one working set."""

from __future__ import annotations

from functools import cache
from typing import Any

from bitwright.autotune.step_bench import Bench
from bitwright.autotune.workload import Workload
from bitwright.target import Target


@cache
def _bench(target: str) -> Bench:
    return Bench(Target.parse(target))


def measure(request: dict[str, Any]) -> float:
    """Seconds of a workload: ``{"target": name, "workload": ..., "working_set": bytes}``."""
    from bitwright.autotune.calls import time_calls
    from bitwright.autotune.kernels import decode_kernel

    bench = _bench(request["target"])
    workload = Workload.from_json(request["workload"], "request")
    if workload.op == "step":
        return bench.step_seconds(workload.threads)
    bench.arena.use(request["working_set"])
    if workload.m > 1:
        return time_calls(workload, bench)
    return bench.seconds(decode_kernel(workload, bench.isa), workload.threads)
