"""Decode kernels as work that a running team of threads shares.

A decode step is a few hundred small kernels. Starting threads for each would cost more than many of them take, so a
kernel of the step does not start any: it says what one thread of a team does, and is assembled in one of two ways:

- ``standalone``: a PrimFunc of its own that starts one parallel loop per split phase (tests, tuning, the VM);
- as workers of the whole step (``codegen.step``): every thread of one parallel region calls the kernel's phases, with a
  spin barrier where one thread's results are read by another.

A phase is emitted from ``(buffers, thread, threads)``; thread and threads are ints or int64 expressions. A split
phase with ``(buffers, 0, 1)`` does all the work. An unsplit phase always does: its ``threads`` says how many computed
the phases before it (how many slots of scratch are filled), its ``thread`` is of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.codegen.layout import TensorSpec

Emit = Callable[[Mapping[str, Any], Any, Any], None]


@dataclass(frozen=True)
class Phase:
    """A part of a kernel between two points where all threads must have arrived.

    Attributes:
        emit: emits what thread ``thread`` of ``threads`` does, given the kernel's buffers and scalars by name.
        split: the threads share the work. Otherwise one computes everything, or each for itself.
    """

    emit: Emit
    split: bool = True


@dataclass(frozen=True)
class TeamKernel:
    """One kernel of a decode step.

    Attributes:
        name: the function's name.
        arguments: tensors in the order of the arguments, results last; scalars are int64 and have shape ().
        results: how many of the last arguments are written (state that is written in place is not counted).
        scratch: tensors shared by the team between phases; at most ``threads`` slots where the extent is ``THREADS``.
        phases: in order; every thread has finished one before any starts the next. The last writes the results, those
            before it write scratch.
        repeatable: every thread may compute an unsplit phase for itself, at the same time: whatever it writes in place
            comes out the same.
    """

    name: str
    arguments: tuple[TensorSpec, ...]
    results: int
    phases: tuple[Phase, ...]
    scratch: tuple[TensorSpec, ...] = ()
    repeatable: bool = True


THREADS = -2
"""Stands for the number of threads in the shape of a scratch tensor."""


def share(extent: Any, thread: Any, threads: Any) -> tuple[Any, Any]:
    """First and end of the contiguous run of ``0 .. extent-1`` that a thread computes; runs cover everything once."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    if isinstance(threads, int) and threads == 1:
        return T.int64(0), T.int64(extent) if isinstance(extent, int) else extent
    whole = T.int64(extent) if isinstance(extent, int) else extent
    count = T.int64(threads) if isinstance(threads, int) else threads
    at = T.int64(thread) if isinstance(thread, int) else thread
    return T.floordiv(whole * at, count), T.floordiv(whole * (at + T.int64(1)), count)


def standalone(team_kernel: TeamKernel, threads: int) -> Any:
    """The kernel as a PrimFunc that takes its arguments and starts ``threads`` threads itself, per split phase."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import kernel, loop
    from bitwright.codegen.stack import aligned_stack

    with kernel(team_kernel.name) as function:
        buffers = {
            spec.name: function.tensor(spec.name, spec.shape, spec.dtype) if spec.shape else function.scalar(spec.name)
            for spec in team_kernel.arguments
        }
        for spec in team_kernel.scratch:
            shape = tuple(threads if extent == THREADS else extent for extent in spec.shape)
            buffers[spec.name] = T.alloc_buffer(shape, spec.dtype)
        for phase in team_kernel.phases:
            if phase.split and threads > 1:
                with loop(threads, "parallel") as thread:
                    phase.emit(buffers, thread, threads)
            else:  # all of it; with one thread a split phase is that too
                with aligned_stack():
                    phase.emit(buffers, 0, threads)
    return function.func
