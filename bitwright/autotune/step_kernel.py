"""A kernel as a decode step runs it: a worker function per phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.step.schedule import REPLICATED_ELEMENTS
from bitwright.codegen.team import THREADS, TeamKernel


@dataclass(frozen=True)
class StepKernel:
    """One kernel with what a step needs to call it.

    Attributes:
        arguments: in order, results last; scalars have shape ().
        results: how many of them are results.
        workers: a PrimFunc per phase.
        splits: per phase, whether the threads share its work.
        scratch: written by earlier phases for later ones.
        zeroed: names of the arguments that must be zeros when they are not given: token ids, positions.
        position: value of the scalar arguments.
        cold: names of the arguments that are read from memory: weights and caches.
    """

    name: str
    arguments: tuple[TensorSpec, ...]
    results: int
    workers: tuple[Any, ...]
    splits: tuple[bool, ...]
    cold: frozenset[str]
    scratch: tuple[TensorSpec, ...] = ()
    zeroed: frozenset[str] = frozenset()
    position: int = 0

    @property
    def replicated(self) -> bool:
        """Every thread computes the result for itself (as ``codegen.step.schedule`` decides)."""
        elements = sum(prod(spec.shape) for spec in self.arguments[len(self.arguments) - self.results :])
        return not self.splits[-1] and elements <= REPLICATED_ELEMENTS

    @property
    def cold_bytes(self) -> int:
        return sum(spec.nbytes for spec in self.arguments if spec.name in self.cold)


def of_team(kernel: TeamKernel, threads: int, cold: frozenset[str], position: int = 0) -> StepKernel:
    """A kernel that threads can share."""
    from bitwright.codegen.step.worker import team_worker

    return StepKernel(
        kernel.name,
        kernel.arguments,
        kernel.results,
        tuple(team_worker(kernel, phase, threads) for phase in range(len(kernel.phases))),
        tuple(phase.split for phase in kernel.phases),
        cold,
        tuple(_with_slots(spec, threads) for spec in kernel.scratch),
        position=position,
    )


def of_function(
    function: Any,
    arguments: Sequence[TensorSpec],
    results: int,
    *,
    cold: frozenset[str] = frozenset(),
    zeroed: frozenset[str] = frozenset(),
) -> StepKernel:
    """A PrimFunc that one thread computes as a whole."""
    from bitwright.codegen.step.worker import function_worker

    name = str(function.attrs["global_symbol"])
    shapes = [spec.shape or None for spec in arguments]
    worker = function_worker(function, shapes, name)
    return StepKernel(name, tuple(arguments), results, (worker,), (False,), cold, zeroed=zeroed)


def _with_slots(spec: TensorSpec, threads: int) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, tuple(threads if e == THREADS else e for e in spec.shape))
