"""Which rows a register block of a prefill kernel computes at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, loop


def block_sizes(largest: int) -> tuple[int, ...]:
    """Numbers of rows that have code of their own: the largest, and what remains in as few pieces as it takes.

    Up to four rows every number, above by halves: code for every number would take long to compile.
    """
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] - 1 if sizes[-1] <= 4 else sizes[-1] // 2)
    return tuple(sizes)


def for_row_blocks(first: Any, end: Any, largest: int, micro: Callable[[Any, int], None]) -> None:
    """Calls ``micro(first row, rows)`` so that every row from ``first`` to before ``end`` is computed once."""
    at = Registers(1, "int64")
    at[0] = first
    for size in block_sizes(largest):
        start = Registers(1, "int64")
        start[0] = at[0]
        with loop((end - start[0]) // T.int64(size)) as block:
            micro(start[0] + block * size, size)
        at[0] = start[0] + (end - start[0]) // T.int64(size) * T.int64(size)
