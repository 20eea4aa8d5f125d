"""Logits of a sequence as they are handed over: at once, or piece by piece where all of them would not fit.

A model is a function from token ids, int64 [n], to its *rows*: the logits behind each token, [n, vocab], as one array
or as an iterable of arrays that hold the rows in order. 8,192 rows of 49,152 logits take 1.6 GB; a piece takes as much
as its maker likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InternalError

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Rows = Floats | Iterable[Floats]
Logits = Callable[[Ids], Rows]


class RowReader:
    """Reads rows in order, in pieces of the reader's choice.

    Args:
        found: one array, or the pieces of one.
        expected: how many rows there are.
        who, where: what an error names.
    """

    def __init__(self, found: Rows, expected: int, who: str, where: str) -> None:
        self._who, self._where, self.rows, self._read = who, where, expected, 0
        self._pieces: Iterator[Floats] = iter((found,)) if isinstance(found, np.ndarray) else iter(found)
        self._piece: Floats | None = None

    def skip(self, count: int) -> None:
        """Leave out the next ``count`` rows."""
        while count:
            count -= len(self._next(count))

    def take(self, count: int) -> Floats:
        """The next ``count`` rows, [count, vocab].

        Raises:
            InternalError: there are fewer, or they are no rows.
        """
        parts = []
        while count:
            parts.append(self._next(count))
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _next(self, most: int) -> Floats:
        """One to ``most`` rows."""
        while self._piece is None or not len(self._piece):
            self._piece = self._checked(next(self._pieces, None))
        rows, self._piece = self._piece[:most], self._piece[most:]
        self._read += len(rows)
        return rows

    def _checked(self, piece: Floats | None) -> Floats:
        if piece is None or piece.ndim != 2:
            given = f"{self._read} rows of logits" if piece is None else f"logits of shape {piece.shape}"
            raise InternalError(
                f"the {self._who} gave {given}", where=self._where, limit=f"{self.rows} rows of one vocabulary"
            )
        return piece
