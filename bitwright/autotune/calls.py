"""The time of kernels for many tokens, which the VM calls one by one: launch and call are part of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bitwright.autotune.kernels import WEIGHTS
from bitwright.autotune.step_bench import LEAST_RUNS, SECONDS, Bench
from bitwright.autotune.workload import Workload
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.linear.spec import TOKENS
from bitwright.errors import UnsupportedError
from bitwright.scheme import LinearScheme

_BIG_CORES = 1
_VARIANTS = 8
"""Sets of weights that calls take in turns."""


def time_calls(workload: Workload, bench: Bench) -> float:
    """Median seconds of one call of the kernel with cold weights.

    Raises:
        UnsupportedError: the operation has no kernel for many tokens that can be timed.
    """
    if workload.op != "linear":
        raise UnsupportedError(f"no kernel to time for {workload}", limit="linear")
    from bitwright.codegen.linear import LinearSpec, build_linear, linear_arguments

    outputs, inputs = workload.shape
    spec = LinearSpec(outputs, inputs, LinearScheme.parse(workload.scheme))
    function = build_linear(spec, bench.isa)
    return alternate([prepare(function, linear_arguments(spec, bench.isa), workload, bench)])[0]


def prepare(function: Any, arguments: Sequence[TensorSpec], workload: Workload, bench: Bench) -> Callable[[], None]:
    """The compiled function with its tensors: each call takes the next set of weights."""
    import tvm_ffi

    from bitwright.codegen.builder import build

    tvm_ffi.get_global_func("runtime.NumThreads")()
    tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, workload.threads)
    name = str(function.attrs["global_symbol"])
    compiled = build(function, bench.target.tvm())[name]
    bench.arena.release()
    specs = [
        TensorSpec(s.name, s.dtype, tuple(workload.m if extent == TOKENS else extent for extent in s.shape))
        for s in arguments
    ]
    hot = {s.name: tvm_ffi.from_dlpack(bench.arena.hot(s)) for s in specs if s.name not in WEIGHTS}
    sets = [[hot.get(s.name) or tvm_ffi.from_dlpack(bench.arena.cold(s)) for s in specs] for _ in range(_VARIANTS)]
    turn = iter(range(1 << 60))

    def call() -> None:
        compiled(*sets[next(turn) % _VARIANTS])

    return call


def alternate(calls: Sequence[Callable[[], None]]) -> list[float]:
    """Median seconds of each of several calls that take turns."""
    figures: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    deadline = time.perf_counter() + SECONDS * len(calls)
    while len(figures[0]) < LEAST_RUNS or time.perf_counter() < deadline:
        for call, found in zip(calls, figures, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [median(found) for found in figures]
