"""Time that a training may take."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """A number of seconds, counted from now on and, where a training was interrupted, with what it took before.

    Args:
        seconds: None: as long as it takes.
        spent: seconds that are gone already.
        clock: seconds from any moment on.
    """

    def __init__(self, seconds: float | None, spent: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._start = clock() - spent

    @property
    def spent(self) -> float:
        """Seconds that are gone."""
        return self._clock() - self._start

    @property
    def over(self) -> bool:
        return self.seconds is not None and self.spent >= self.seconds

    def progress(self, done: int, steps: int) -> float:
        """Which share of a training of ``steps`` is over, 0 to 1: by steps, or by time if that runs out earlier."""
        by_time = 0.0 if self.seconds is None else self.spent / self.seconds if self.seconds > 0 else 1.0
        return min(max(done / steps, by_time), 1.0)

    def part(self, count: int) -> Allowance:
        """An equal share, for the next of ``count`` that remain, of what is left."""
        if self.seconds is None:
            return Allowance(None, clock=self._clock)
        return Allowance(max(self.seconds - self.spent, 0.0) / count, clock=self._clock)

    def resumed(self, spent: float) -> Allowance:
        """The same, of which ``spent`` seconds are gone."""
        return Allowance(self.seconds, spent, self._clock)
