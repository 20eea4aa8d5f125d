"""Logits of long sequences through the interpreter's cache, piece by piece, so that they need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bitwright.frontend.interpreter.interpreter import Floats, Interpreter
    from bitwright.frontend.interpreter.runner import Tensors

PIECE = 512
"""Tokens computed at once: 100 MB of logits with a vocabulary of 49,152."""


class CachedRows:
    """``rows(ids, first)`` of a session, for a decoder in the interpreter: the float model beside the compiled one.

    Keeps the cache of the last sequence: what the next one shares with it is not computed again.
    """

    def __init__(self, interpreter: Interpreter, piece: int = PIECE) -> None:
        self._interpreter, self._piece = interpreter, piece
        self._ids: list[int] = []
        self._past: Tensors = interpreter.empty_past()

    def __call__(self, ids: Sequence[int] | npt.NDArray[np.int64], first: int = 0) -> Iterator[Floats]:
        """The logits behind ``ids[first:]``, float32 [rows, vocab], in pieces of at most ``piece`` rows."""
        tokens = [int(number) for number in ids]
        self._keep(tokens[:first])
        for start in range(len(self._ids), first, self._piece):
            self._feed(tokens[start : min(start + self._piece, first)], last_only=True)
        for start in range(first, len(tokens), self._piece):
            yield self._feed(tokens[start : start + self._piece], last_only=False)

    def _keep(self, tokens: list[int]) -> None:
        """Forget what is not a beginning of ``tokens``."""
        pairs = zip(self._ids, tokens, strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self._ids), len(tokens)))
        self._ids = self._ids[:shared]
        self._past = {name: tensor[:, :, :shared] for name, tensor in self._past.items()}

    def _feed(self, tokens: list[int], *, last_only: bool) -> Floats:
        logits, self._past = self._interpreter.step(np.array(tokens, np.int64), self._past, last_only=last_only)
        self._ids += tokens
        return logits
