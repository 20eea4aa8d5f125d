"""Quality of a model on text: windowed perplexity, and divergence from a reference model. NumPy only.

Protocol: the text's tokens are cut into non-overlapping windows of ``context`` tokens, without BOS; each window
starts from an empty cache. Position i of a window is predicted by the logits of position i - 1, so positions 1 ...
context - 1 are scored; the *second half* are positions context / 2 ... context - 1, whose predictions have seen at
least half a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InputError, InternalError, UsageError
from bitwright.runtime.divergence import Divergence, Doubles, divergence, log_softmax, losses
from bitwright.runtime.rows import Ids, Logits, RowReader

MIN_CONTEXT = 4
CHUNK = 64
"""Rows of logits held in float64 at once."""

SHORTEST_RANGE = 128
"""Positions of the first range of ``position_ranges``."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        perplexity: exp of the mean negative log-likelihood over positions 1 ... context - 1.
        perplexity_second_half: the same over positions context / 2 ... context - 1.
        divergence: over the second half; None without a reference.
        windows: number of windows scored.
        context: tokens of a window.
    """

    perplexity: float
    perplexity_second_half: float
    divergence: Divergence | None
    windows: int
    context: int

    def to_json(self) -> dict[str, Any]:
        """The keys of ``bitwright eval --json``, but ``bytes``, which the artifact knows."""
        return {
            "perplexity": self.perplexity,
            "perplexity_second_half": self.perplexity_second_half,
            **(self.divergence.to_json() if self.divergence else {"kl": None, "top1": None}),
            "windows": self.windows,
            "context": self.context,
        }


@dataclass(frozen=True)
class PositionRange:
    """The figures of positions ``first`` ... ``last`` of all windows."""

    first: int
    last: int
    perplexity: float
    divergence: Divergence | None

    def to_json(self) -> dict[str, Any]:
        """One entry of ``positions``."""
        return {
            "first": self.first,
            "last": self.last,
            "perplexity": self.perplexity,
            **(self.divergence.to_json() if self.divergence else {"kl": None, "top1": None}),
        }


@dataclass(frozen=True)
class WindowScores:
    """Every scored position of every window.

    Attributes:
        losses: float64 [windows, context - 1], -log p of position i at i - 1.
        kl: float64 [windows, context - 1 - start], of the rows from ``start`` on; None without a reference.
        agreed: whether the most likely continuations are the same, bool, as ``kl``.
        start: first row that was compared with the reference.
    """

    losses: Doubles
    kl: Doubles | None
    agreed: npt.NDArray[np.bool_] | None
    start: int

    @property
    def context(self) -> int:
        return int(self.losses.shape[1]) + 1

    def evaluation(self) -> Evaluation:
        """Over everything, and over the second half."""
        half = second_half(self.context)
        return Evaluation(
            perplexity=float(np.exp(self.losses.mean())),
            perplexity_second_half=float(np.exp(self.losses[:, half].mean())),
            divergence=self._divergence(half),
            windows=len(self.losses),
            context=self.context,
        )

    def by_position(self) -> list[PositionRange]:
        """Over each of ``position_ranges(context)``."""
        found = []
        for first, last in position_ranges(self.context):
            rows = slice(first - 1, last)
            perplexity = float(np.exp(self.losses[:, rows].mean()))
            found.append(PositionRange(first, last, perplexity, self._divergence(rows)))
        return found

    def _divergence(self, rows: slice) -> Divergence | None:
        if self.kl is None or self.agreed is None:
            return None
        compared = slice(rows.start - self.start, rows.stop - self.start)
        return Divergence.of(self.kl[:, compared], self.agreed[:, compared])


def second_half(context: int) -> slice:
    """The rows of a window's logits that predict its positions context / 2 ... context - 1."""
    return slice(context // 2 - 1, context - 1)


def position_ranges(context: int) -> list[tuple[int, int]]:
    """First and last positions of ranges that each double the context: 1-127, 128-255, 256-511, ... context - 1."""
    edges = [context]
    while edges[0] >= 2 * SHORTEST_RANGE:
        edges.insert(0, (edges[0] + 1) // 2)
    return list(zip([1, *edges[:-1]], [edge - 1 for edge in edges], strict=True))


def windows_of(tokens: npt.ArrayLike, context: int, max_windows: int | None = None) -> Ids:
    """The first ``max_windows`` (default: all) whole windows of ``tokens``, int64 [windows, context].

    Raises:
        UsageError: a window too small or odd, no window asked for.
        InputError: fewer tokens than one window.
    """
    if context < MIN_CONTEXT or context % 2:
        raise UsageError(
            f"windows of {context} tokens cannot be scored",
            limit=f"an even number, at least {MIN_CONTEXT}",
            remedy="use --ctx 512",
        )
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"{max_windows} windows were asked for", limit="at least 1", remedy="leave the limit out")
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise InternalError(f"tokens are {ids.dtype} of shape {ids.shape}, not one sequence of integers")
    count = len(ids) // context
    if not count:
        raise InputError(
            f"the text has {len(ids)} tokens, too few for one window",
            limit=f"{context} tokens a window",
            remedy=f"give a longer text, or a smaller --ctx (at least {MIN_CONTEXT})",
        )
    count = count if max_windows is None else min(count, max_windows)
    return ids[: count * context].astype(np.int64).reshape(count, context)


def evaluate(
    session_logits: Logits,
    tokens: npt.ArrayLike,
    *,
    context: int = 512,
    reference: Logits | None = None,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model on ``tokens``, and against ``reference`` if there is one.

    Args:
        session_logits: int64 [context] -> logits [context, vocab] of a window after an empty cache, whole or in pieces.
        tokens: the whole text, int [n].
        context: tokens of a window.
        reference: the same of the reference model; an array may also hold only the rows ``second_half(context)``, and
            log-probabilities may stand in place of logits (softmax does not see the difference).
        max_windows: stop after so many windows.
        progress: called with (windows done, windows in all) after each.

    Raises:
        UsageError, InputError: see ``windows_of``.
        NumericalError: logits that are not numbers.
    """
    windows = windows_of(tokens, context, max_windows)
    start = second_half(context).start
    return score_windows(session_logits, windows, reference, start=start, progress=progress).evaluation()


def score_windows(
    logits: Logits, windows: Ids, reference: Logits | None = None, *, start: int = 0, progress: Progress | None = None
) -> WindowScores:
    """Score every position of ``windows``, int64 [windows, context], with a few rows of logits in memory at a time.

    Args:
        logits, reference, progress: as for ``evaluate``; an array of the reference may leave out the rows before
            ``start`` and the last.
        start: first row that is compared with the reference; 0: all of them.
    """
    context = windows.shape[1]
    loss, kl, agreed = [], [], []
    for index, window in enumerate(windows):
        where = f"window {index}"
        given = _reader(logits(window), "model", where, context)
        expected = None
        if reference is not None:
            expected = _reader(reference(window), "reference", where, context, context - 1 - start)
            if expected.rows == context:
                expected.skip(start)
        for first in range(0, context - 1, CHUNK):
            last = min(first + CHUNK, context - 1)
            rows = given.take(last - first)
            log_q = log_softmax(rows)
            loss.append(losses(log_q, window[first + 1 : last + 1], where))
            compared = last - max(first, start)
            if expected is not None and compared > 0:
                p = expected.take(compared)
                kl.append(divergence(log_softmax(p), log_q[-compared:], where))
                agreed.append(p.argmax(-1) == rows[-compared:].argmax(-1))
        if progress is not None:
            progress(index + 1, len(windows))
    shape = (len(windows), -1)
    return WindowScores(
        np.concatenate(loss).reshape(shape),
        np.concatenate(kl).reshape(shape) if kl else None,
        np.concatenate(agreed).reshape(shape) if agreed else None,
        start,
    )


def _reader(found: Any, who: str, where: str, *counts: int) -> RowReader:
    """A reader of ``found``; an array must have one of ``counts`` rows, pieces are the first of them."""
    if isinstance(found, np.ndarray) and (found.ndim != 2 or len(found) not in counts):
        raise InternalError(
            f"the {who} gave logits of shape {found.shape}",
            where=where,
            limit=f"{' or '.join(str(count) for count in counts)} rows of one vocabulary",
        )
    return RowReader(found, len(found) if isinstance(found, np.ndarray) else counts[0], who, where)
