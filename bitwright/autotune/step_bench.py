"""Seconds of a kernel in a decode step, and of two beside each other."""

from __future__ import annotations

import time
from functools import cached_property
from statistics import median

from bitwright.autotune.arena import Arena, arena_bytes
from bitwright.autotune.chain import Chain, cycles_per_second
from bitwright.autotune.step_kernel import StepKernel
from bitwright.codegen.isa import Isa, select_isa
from bitwright.target import Target

LEAST_RUNS = 15
"""Runs of each chain at least: what is reported is their median."""

SECONDS = 0.06
"""Time spent on one figure, if that is more runs."""


class Bench:
    """The machine that measures: a target, memory that is used again, the speed of the cycle counter."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.arena = Arena(arena_bytes(target.caches))

    @cached_property
    def isa(self) -> Isa:
        return select_isa(self.target.features)

    @cached_property
    def _hertz(self) -> float:
        return cycles_per_second(self._small_chain(1))

    def _small_chain(self, threads: int) -> Chain:
        from bitwright.autotune.kernels import decode_kernel
        from bitwright.autotune.workload import Workload

        work = Workload("append", (2, 32), "k16v16", 1, threads, self.isa.name)
        return Chain(decode_kernel(work, self.isa), threads, self.target, self.arena)

    def step_seconds(self, threads: int) -> float:
        """What a call of a decode step takes beyond its kernels: threads are started and waited for."""
        chain = self._small_chain(threads)
        chain.run()
        outside = []
        for _ in range(200):
            start = time.perf_counter()
            chain.call()
            outside.append(time.perf_counter() - start - chain.inside / self._hertz)
        return max(median(outside), 0.0)

    def seconds(self, kernel: StepKernel, threads: int) -> float:
        """Median over runs of the mean time of a call."""
        self.arena.release()
        return self.compare([Chain(kernel, threads, self.target, self.arena)])[0]

    def compare(self, chains: list[Chain]) -> list[float]:
        """The same for several chains whose runs alternate, so that what slows the machine down slows all of them."""
        figures: list[list[float]] = [[] for _ in chains]
        for chain in chains:
            chain.run()
        deadline = time.perf_counter() + SECONDS * len(chains)
        while len(figures[0]) < LEAST_RUNS or time.perf_counter() < deadline:
            for chain, found in zip(chains, figures, strict=True):
                found.append(chain.mean_cycles())
        return [median(found) / self._hertz for found in figures]
