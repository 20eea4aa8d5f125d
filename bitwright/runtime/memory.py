"""What this machine's memory allows: huge pages, and room for a copy of the weights."""

from __future__ import annotations

from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY = Path("/proc/meminfo")


def has_huge_pages(setting: Path = HUGE_PAGES) -> bool:
    """Whether a process may ask for transparent huge pages."""
    try:
        text = setting.read_text()
    except OSError:
        return False
    return "[madvise]" in text or "[always]" in text


def available_bytes(source: Path = MEMORY) -> int:
    """Memory that can be had without swapping, as the kernel estimates it; 0 where it does not tell."""
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


def should_copy(nbytes: int, *, huge: bool | None = None, available: int | None = None) -> bool:
    """Whether weights of ``nbytes`` bytes are better copied into huge pages than mapped from their file.

    They are where huge pages are to be had and the copy takes at most half of the available memory.
    """
    free = available_bytes() if available is None else available
    return (has_huge_pages() if huge is None else huge) and 2 * nbytes <= free
