"""Lists of token ids: checked as callers pass them, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitwright.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


def checked_ids(ids: Sequence[int] | np.ndarray, vocab: int) -> list[int]:
    """``ids`` as a list.

    Raises:
        UsageError: none, one outside the vocabulary, or something else than one row of whole numbers.
    """
    import numpy as np

    array = np.asarray(ids)
    if array.size == 0:
        raise no_tokens()
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UsageError(
            f"token ids are {array.dtype} of shape {array.shape}", limit="one row of whole numbers", where="ids"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab:
        raise UsageError(
            f"token id {low if low < 0 else high} is outside the vocabulary", where="ids", limit=f"0 to {vocab - 1}"
        )
    return [int(number) for number in array]


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def no_tokens() -> UsageError:
    """There is nothing to continue."""
    return UsageError("the prompt is empty", limit="at least one token", remedy="pass some text")
