"""A bound on the memory that a piece of foreign code may take."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let the block take at most ``size`` bytes more than the process has now: beyond it raises MemoryError.

    The bound is the kernel's (address space, see getrlimit(2)) and holds for all threads of the process while the block
    runs: for short blocks only. A limit that is stricter already stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # The first figure of statm is the size of the address space in pages.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = [pages * resource.getpagesize() + size, *(x for x in (soft, hard) if x != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
