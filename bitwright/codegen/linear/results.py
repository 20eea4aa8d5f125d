"""What becomes of the sums that a prefill kernel computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from bitwright.codegen.linear.arguments import Arguments


class Results(Protocol):
    """Takes finished sums of the columns that a tile's kernel computes."""

    def batches(self, columns: int) -> Iterator[range]:
        """The columns in the order of computation, at most ``columns`` at a time."""

    def put(self, first_row: Any, row: int, number: int, value: Any) -> None:
        """The sums of token ``first_row + row`` and column ``number``, f32 x lanes."""

    def finish(self, first_row: Any, rows: int) -> None:
        """Every column of ``rows`` tokens has been put."""


class TileResults:
    """Rows of y, with the bias added."""

    def __init__(self, args: Arguments, columns: Sequence[tuple[Any, int]]) -> None:
        self._args, self._columns = args, columns

    def batches(self, columns: int) -> Iterator[range]:
        return batches(len(self._columns), columns)

    def put(self, first_row: Any, row: int, number: int, value: Any) -> None:
        tile, block = self._columns[number]
        self._args.write(first_row + row, tile, block, value)

    def finish(self, first_row: Any, rows: int) -> None:
        pass


def batches(count: int, most: int) -> Iterator[range]:
    """``0 .. count-1`` in runs of at most ``most``."""
    for first in range(0, count, most):
        yield range(first, min(first + most, count))
