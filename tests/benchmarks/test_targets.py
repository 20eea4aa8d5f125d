"""Turns and ratios of plans on targets that they were not made for."""

from __future__ import annotations

from benchmarks.targets import Timed, measure, row, slower


def timed(solved_for: str, target: str, decode: tuple[float, ...]) -> Timed:
    return Timed(60_000_000, solved_for, target, 59_999_936, 0.25, 1.5, 100.0, decode, tuple(60 * t for t in decode))


def test_everything_is_called_in_every_round_and_the_first_does_not_count() -> None:
    calls: list[str] = []

    def call(name: str, figure: float) -> float:
        calls.append(name)
        return figure + len(calls)

    found = measure({"a": lambda: call("a", 0), "b": lambda: call("b", 100)}, 2)
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": (3, 6), "b": (104, 105)}


def test_ratios_are_taken_within_a_round_over_the_targets_own_plan() -> None:
    own, foreign = timed("avx2", "avx2", (1.0, 2.0, 4.0)), timed("native", "avx2", (1.1, 2.4, 4.0))
    other = timed("native", "native", (0.5, 0.5, 0.5))
    found = [own, foreign, other]
    assert slower(found, own, "decode") == () and slower(found, foreign, "decode") == (1.1, 1.2, 1.0)
    cells = row(found, foreign)
    assert cells[:5] == ["60 MB", "native", "avx2", "59999936", "0.2500"]
    assert cells[5:8] == ["1.500", "2.400 [1.100-4.000]", "1.100 [1.000-1.200]"]
    assert row(found, own)[7] == ""
