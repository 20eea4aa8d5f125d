"""Allowances of time: what is gone, what is left, and shares of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitwright.frontend.allowance import Allowance


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_limit_only_steps_count() -> None:
    clock = Clock()
    allowance = Allowance(None, clock=clock)
    clock.now += 1e6
    assert not allowance.over and allowance.spent == 1e6
    assert allowance.progress(3, 12) == 0.25
    assert not allowance.part(2).over


def test_time_counts_from_the_start_and_with_what_was_spent_before() -> None:
    clock = Clock()
    allowance = Allowance(60, spent=15, clock=clock)
    assert allowance.progress(0, 10) == 0.25
    clock.now += 30
    assert allowance.progress(1, 10) == 0.75 and not allowance.over
    clock.now += 15
    assert allowance.over and allowance.progress(1, 10) == 1
    assert allowance.resumed(59).over is False


def test_parts_are_equal_shares_of_what_is_left() -> None:
    clock = Clock()
    allowance = Allowance(60, clock=clock)
    clock.now += 12
    part = allowance.part(4)
    assert part.seconds == 12 and part.spent == 0
    clock.now += 12
    assert part.over and not allowance.over
    clock.now += 100
    assert allowance.part(3).over


@given(st.floats(0.1, 1e6), st.floats(0, 2e6), st.integers(0, 100), st.integers(1, 100))
def test_progress_lies_between_none_and_all_and_is_never_behind_the_steps(
    seconds: float, spent: float, done: int, steps: int
) -> None:
    clock = Clock()
    progress = Allowance(seconds, spent, clock).progress(done, steps)
    assert min(done / steps, 1) <= progress <= 1
