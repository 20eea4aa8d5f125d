"""How many threads a session computes with."""

from __future__ import annotations

import os

from bitwright.errors import UsageError
from bitwright.runtime.host import physical_cores
from bitwright.tvm_runtime import NUM_THREADS, pool_limit


def choose_threads(threads: int | None, room: int | None = None) -> int:
    """The number of threads to compute with: ``threads``, by default one per physical core.

    Args:
        room: most threads that an artifact's decode step has memory for; None: any number.

    Raises:
        UsageError: no positive number, or more than this process may use or the artifact has room for.
    """
    available = min(len(os.sched_getaffinity(0)), pool_limit())
    if threads is None:
        return min(physical_cores(), available, room or available)
    if threads < 1 or threads > available:
        raise UsageError(
            f"{threads} threads were asked for",
            limit=f"this process may use {available} (its processors, and {NUM_THREADS} in the environment)",
            remedy=f"choose 1 to {available}",
        )
    if room is not None:
        require_room(threads, room)
    return threads


def require_room(threads: int, room: int) -> None:
    """Check that an artifact's decode step has memory for so many threads.

    Raises:
        UsageError: it has not.
    """
    if threads > room:
        raise UsageError(
            f"{threads} threads were asked for",
            limit=f"the artifact's decode step was compiled for at most {room}",
            remedy=f"choose 1 to {room}, or compile the model again",
        )
