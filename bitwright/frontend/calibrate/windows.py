"""Windows of a text to calibrate on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.moments import Ids

LEAST_TOKENS = 16


def spread(tokens: Ids, length: int, count: int) -> Ids:
    """At most ``count`` windows of ``length`` tokens from all over ``tokens`` int [n], int64 [windows, length].

    They are evenly spaced and do not overlap; a text that is shorter than a window is one.

    Raises:
        InputError: fewer than LEAST_TOKENS tokens.
    """
    if len(tokens) < LEAST_TOKENS:
        raise InputError(
            f"the calibration text has {len(tokens)} tokens",
            limit=f"at least {LEAST_TOKENS}; some ten thousand are better",
            remedy="give a longer text, or none: the model then samples one itself",
        )
    length = min(length, len(tokens))
    windows = tokens[: len(tokens) // length * length].astype(np.int64).reshape(-1, length)
    return windows[places(len(windows), count)]


def places(windows: int, count: int) -> Ids:
    """Numbers of at most ``count`` windows, evenly spaced from the first to the last of ``windows``, ascending."""
    return np.unique(np.linspace(0, windows - 1, min(count, windows)).round().astype(np.int64))
