"""Seconds of a kernel in a decode step, and of two beside each other."""

from __future__ import annotations

import time
from functools import cached_property
from statistics import median

from bitwright.autotune.arena import Arena, arena_bytes
from bitwright.autotune.chain import Chain, cycles_per_second
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
        return select_isa(self.target.features, self.target.tune)

    @cached_property
    def hertz(self) -> float:
        """Of the cycle counter."""
        from bitwright.autotune.kernels import decode_kernel
        from bitwright.autotune.workload import Workload

        work = Workload("linear", (64, 64), "u4g32a8", 1, 1, self.isa.name)
        chain = Chain(decode_kernel(work, self.isa), 1, self.target, self.arena)
        chain.place()
        return cycles_per_second(chain)

    def compare(self, chains: list[Chain]) -> list[float]:
        """The same for several chains whose runs alternate, so that what slows the machine down slows all of them."""
        figures: list[list[float]] = [[] for _ in chains]
        for chain in chains:
            chain.place()
            chain.run()
        deadline = time.perf_counter() + SECONDS * len(chains)
        while len(figures[0]) < LEAST_RUNS or time.perf_counter() < deadline:
            for chain, found in zip(chains, figures, strict=True):
                found.append(chain.mean_cycles())
        return [median(found) / self.hertz for found in figures]
