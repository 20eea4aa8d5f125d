"""Progress where nobody watches a terminal: a line from time to time, none of short work."""

from __future__ import annotations

import pytest

from bitwright.cli import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_long_work_is_seen_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.phases("compile") as tell:
        for minute, phase in enumerate(("read", "quantize", "lower")):
            tell(f"{phase} at once")
            clock[0] = 1000.0 + 61 * (minute + 1)
            tell(phase)
            tell(f"{phase} again")
    out, err = capsys.readouterr()
    assert err.splitlines() == ["compile: read (1:01)", "compile: quantize (2:02)", "compile: lower (3:03)"]
    assert not out


def test_counts_are_seen_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("evaluate") as tell:
        for done in range(1, 5):
            clock[0] += 20
            tell(done, 4)
    assert capsys.readouterr().err.splitlines() == ["evaluate: 2 of 4 (0:40)", "evaluate: 4 of 4 (1:20)"]


def test_short_work_leaves_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.phases("compile") as tell:
        tell("read")
        tell("lower")
    assert not capsys.readouterr().err
