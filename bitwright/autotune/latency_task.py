"""What the measuring process does for a latency table: compiles many kernels, then times them in turns.

A slow minute of the machine must not make one kernel look slow: kernels are timed in rounds, a few runs of each at a
time, and what is kept is the median over all of them. Kernels whose runs scatter get more rounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from bitwright.autotune.calls import Call
from bitwright.autotune.chain import Chain
from bitwright.autotune.kernels import decode_kernel
from bitwright.autotune.latency import DISTURBED, Timing, spread
from bitwright.autotune.step_bench import Bench
from bitwright.autotune.workload import Workload
from bitwright.codegen.linear import build_linear, linear_arguments, linear_spec
from bitwright.runs import parse_weights
from bitwright.target import Target

ENTRY = f"{__name__}:answer"
ROUNDS, RUNS = 4, 2
"""Each kernel is timed ``ROUNDS`` times ``RUNS`` times."""

MOST_ROUNDS = 12
"""Of a kernel that other work on the machine disturbs."""


class LatencyBench:
    """Kernels that are compiled, and how long they take."""

    def __init__(self, target: Target) -> None:
        self.bench = Bench(target)
        self._kernels: dict[Workload, Chain | Call] = {}

    def prepare(self, workload: Workload) -> None:
        """Compile the kernel of a workload. One kernel serves any number of tokens but one.

        Raises:
            UnsupportedError: there is no such kernel.
        """
        key = _compiled_for(workload)
        if key not in self._kernels:
            self._kernels[key] = self._compile(workload)

    def forget(self) -> None:
        """Drop the kernels that were compiled."""
        self._kernels.clear()

    def timings(self, asked: Sequence[tuple[Workload, int]]) -> list[Timing]:
        """How long a call of each workload takes, which was prepared, in a working set of so many bytes."""
        figures: dict[tuple[Workload, int], list[float]] = {key: [] for key in asked}
        # One working set after the other, or the smaller one would find parts of the larger in cache.
        for size in sorted({size for _, size in asked}):
            self.bench.arena.use(size)
            for number in range(MOST_ROUNDS):
                for key, found in figures.items():
                    if key[1] == size and (number < ROUNDS or spread(found) > DISTURBED):
                        found += self._runs(key[0])
        return [Timing.of(figures[key]) for key in asked]

    def _runs(self, workload: Workload) -> list[float]:
        kernel = self._kernels[_compiled_for(workload)]
        self.bench.arena.release()
        if isinstance(kernel, Chain):
            kernel.place()
            return [kernel.mean_cycles() / self.bench.hertz for _ in range(RUNS)]
        kernel.place(workload.m, workload.threads)
        kernel()
        return [_timed(kernel) for _ in range(RUNS)]

    def _compile(self, workload: Workload) -> Chain | Call:
        bench = self.bench
        if workload.m == 1:
            return Chain(decode_kernel(workload, bench.isa), workload.threads, bench.target, bench.arena)
        spec = linear_spec(parse_weights(workload.scheme), *workload.shape)
        return Call(build_linear(spec, bench.isa), linear_arguments(spec, bench.isa), bench)


def _compiled_for(workload: Workload) -> Workload:
    if workload.m == 1:
        return workload
    return Workload(workload.op, workload.shape, workload.scheme, 2, 1, workload.isa)


def _timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@cache
def _bench(target: str) -> LatencyBench:
    return LatencyBench(Target.parse(target))


def answer(request: dict[str, Any]) -> Any:
    """``{"target": name, "prepare": workload}``, or ``{"target": name, "time": [[workload, working set], ...]}``.

    Times are pairs of seconds and spread. After an answer with times all that was prepared is forgotten.
    """
    bench = _bench(request["target"])
    if "prepare" in request:
        bench.prepare(Workload.from_json(request["prepare"], "request"))
        return None
    asked = [(Workload.from_json(document, "request"), int(size)) for document, size in request["time"]]
    found = [(timing.seconds, timing.spread) for timing in bench.timings(asked)]
    bench.forget()
    return found
