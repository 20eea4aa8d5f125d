"""What becomes of the sums that a prefill kernel computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from bitwright.codegen.linear.arguments import Arguments


class Results(Protocol):
    """Takes finished sums of the columns that a tile's kernel computes.

    Attributes:
        tokens: that are put before they are finished; None for all.
    """

    tokens: int | None

    def batches(self, columns: int) -> Iterator[range]:
        """The columns in the order of computation, at most ``columns`` at a time."""

    def expect(self, first_row: Any, rows: int) -> None:
        """Tokens from ``first_row`` on, ``rows`` of them, will be put after those that are computed now."""

    def put(self, first_row: Any, row: int, number: int, value: Any) -> None:
        """The sums of token ``first_row + row`` and column ``number``, f32 x lanes."""

    def finish(self, first_row: Any, end: Any) -> None:
        """Every column of tokens ``first_row`` to before ``end``, at most ``tokens`` of them, has been put."""


class TileResults:
    """Rows of y, with bias and residual added."""

    tokens: int | None = None

    def __init__(self, args: Arguments, columns: Sequence[tuple[Any, int]]) -> None:
        self._args, self._columns = args, columns

    def batches(self, columns: int) -> Iterator[range]:
        return batches(len(self._columns), columns)

    def expect(self, first_row: Any, rows: int) -> None:
        """Ask for the lines: they lie too far apart for a prefetcher to see that they will be used."""
        for row in range(rows):
            for tile, block in self._columns:
                self._args.expect(first_row + row, tile, block)

    def put(self, first_row: Any, row: int, number: int, value: Any) -> None:
        tile, block = self._columns[number]
        self._args.write(first_row + row, tile, block, value)

    def finish(self, first_row: Any, end: Any) -> None:
        pass


def batches(count: int, most: int) -> Iterator[range]:
    """``0 .. count-1`` in runs of at most ``most``."""
    for first in range(0, count, most):
        yield range(first, min(first + most, count))
