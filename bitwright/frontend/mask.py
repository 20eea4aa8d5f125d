"""Which keys a mask lets each query see, decided from the mask's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

HIDDEN_BELOW = -1e4  # additive masks hide with -inf or the most negative number of some float type
VERIFY_ROWS = 8

Form = Literal["visible", "hidden", "additive"]


@dataclass(frozen=True)
class Mask:
    """A query at absolute position i sees keys j <= i if ``causal``, and only j > i - window if ``window`` is not 0.

    ``form`` says how the graph writes it: ``visible`` (True = visible), ``hidden`` (True = hidden) or ``additive`` (0
    = visible).
    """

    form: Form
    causal: bool
    window: int = 0

    def matrix(self, n: int, p: int) -> np.ndarray:
        """bool [n, n+p]: what ``n`` queries after ``p`` cached positions see."""
        query = np.arange(p, p + n)[:, None]
        key = np.arange(p + n)[None]
        seen = key <= query if self.causal else np.ones((n, n + p), bool)
        return seen & (key > query - self.window) if self.window else seen


def classify(mask_at: Callable[[int, int], np.ndarray], context: int, cached: bool) -> Mask | None:
    """Decide what a mask means.

    Args:
        mask_at: content of the mask for n queries after p cached positions, broadcastable to [1, 1, n, n+p].
        context: the longest n + p.
        cached: whether the model has a cache (else p is always 0).

    Returns: the mask, or None where it is neither causal, nor causal with a sliding window, nor all-visible.
    """
    if not cached:
        return _fit(mask_at, [(n, 0) for n in (1, 3, 7, min(context, 64))], causal=(False, True), windows=(0,))
    last = _matrix(mask_at(1, context - 1), 1, context - 1)
    for form, matrix in last:
        seen = int(matrix.sum())
        windows = (0,) if seen == context else (seen,)
        rows = min(VERIFY_ROWS, context)
        starts = {0, 1, 3, context - rows, (context - rows) // 2}
        starts |= {seen - 1, seen, seen + seen // 2, max(seen - rows, 0)} if seen < context else set()
        points = [(n, p) for p in sorted(starts) for n in (1, rows) if p >= 0 and n + p <= context]
        found = _fit(mask_at, points, causal=(True, False), windows=windows, forms=(form,))
        if found:
            return found
    return None


def _fit(
    mask_at: Callable[[int, int], np.ndarray],
    points: list[tuple[int, int]],
    causal: tuple[bool, ...],
    windows: tuple[int, ...],
    forms: tuple[Form, ...] = ("visible", "hidden", "additive"),
) -> Mask | None:
    seen = {point: dict(_matrix(mask_at(*point), *point)) for point in points}
    for form in forms:
        for is_causal in causal:
            for window in windows:
                mask = Mask(form, is_causal, window)
                if all(form in seen[at] and np.array_equal(seen[at][form], mask.matrix(*at)) for at in points):
                    return mask
    return None


def _matrix(content: np.ndarray, n: int, p: int) -> list[tuple[Form, np.ndarray]]:
    """Readings of a mask as "query sees key" bool [n, n+p]; empty if it has another shape or values between shown and
    hidden.
    """
    rows, columns = (content.shape[axis] if content.ndim >= 2 else 0 for axis in (-2, -1))
    if content.size != rows * columns or rows not in (1, n) or columns not in (1, n + p):
        return []
    flat = content.reshape(rows, columns)
    flat = np.broadcast_to(flat, (n, n + p))
    if flat.dtype == np.bool_:
        return [("visible", flat), ("hidden", ~flat)]
    shown, hidden = flat == 0, flat <= HIDDEN_BELOW
    return [("additive", shown)] if bool(np.all(shown | hidden)) else []
