"""The time of kernels for many tokens, which the VM calls one by one: launch and call are part of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bitwright.autotune.kernels import WEIGHTS
from bitwright.autotune.step_bench import LEAST_RUNS, SECONDS, Bench
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.linear.spec import TOKENS
from bitwright.tvm_runtime import use_threads

_VARIANTS = 8
"""Sets of weights that calls take in turns."""


class Call:
    """A compiled prefill kernel; each call takes the next set of weights.

    Args:
        function: its PrimFunc; ``arguments``: what it takes.
    """

    def __init__(self, function: Any, arguments: Sequence[TensorSpec], bench: Bench) -> None:
        from bitwright.codegen.builder import build

        name = str(function.attrs["global_symbol"])
        self._compiled = build(function, bench.target.tvm())[name]
        self._arguments, self._bench = arguments, bench
        self._sets: list[list[Any]] = []
        self._turn = 0

    def place(self, tokens: int, threads: int) -> None:
        """Take memory for calls with so many tokens."""
        import tvm_ffi

        use_threads(threads)
        arena = self._bench.arena
        specs = [
            TensorSpec(s.name, s.dtype, tuple(tokens if extent == TOKENS else extent for extent in s.shape))
            for s in self._arguments
        ]
        hot = {s.name: tvm_ffi.from_dlpack(arena.hot(s)) for s in specs if s.name not in WEIGHTS}
        self._sets = [[hot.get(s.name) or tvm_ffi.from_dlpack(arena.cold(s)) for s in specs] for _ in range(_VARIANTS)]

    def __call__(self) -> None:
        self._turn += 1
        self._compiled(*self._sets[self._turn % _VARIANTS])


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
