"""A benchmark that was cut off goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.journal import Journal
from benchmarks.report import print_tables, report
from benchmarks.worker import Row

TG = Row("tg", 64, depth=5)
OURS, PEER = ("bitwright a", 2, TG), ("llama.cpp q8_0", 2, TG)
SIZE = {"weight_bytes": 1_500_000}


def filled(rounds: dict[int, tuple[float, float]]) -> Journal:
    journal = Journal("model")
    for label, *_ in (OURS, PEER):
        journal.enter(label, SIZE)
    for number, (ours, theirs) in rounds.items():
        journal.add(number, {OURS: ours, PEER: theirs})
    return journal


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    journal = filled({1: (2.0, 1.0), 2: (3.0, 1.5)})
    journal.write(tmp_path / "out.json", {"rows": []})
    assert Journal.read(tmp_path / "out.json", "model") == journal
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_another_model_never_shares_a_file(tmp_path: Path) -> None:
    filled({}).write(tmp_path / "out.json", {})
    with pytest.raises(SystemExit, match="holds figures of another model"):
        Journal.read(tmp_path / "out.json", "other")


def test_only_missing_rounds_are_run() -> None:
    journal = filled({1: (2.0, 1.0), 2: (3.0, 1.5)})
    assert list(journal.missing([OURS, PEER], 5)) == [3, 4, 5]
    assert list(journal.missing([OURS], 2)) == []
    # A contestant that comes later runs all its rounds, under numbers of their own.
    assert list(journal.missing([OURS, ("late", 2, TG)], 3)) == [3, 4, 5]


def test_a_contestant_that_has_changed_starts_anew() -> None:
    journal = filled({1: (2.0, 1.0)})
    assert journal.enter("bitwright a", SIZE)
    assert not journal.enter("bitwright a", {"weight_bytes": 2})
    assert journal.figures == {PEER: {1: 1.0}}
    assert list(journal.missing([OURS, PEER], 1)) == [2]


def test_the_tables_show_medians_and_ratios_of_shared_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    journal = filled({1: (2.0, 1.0), 2: (9.0, 3.0), 3: (8.0, 2.0)})
    journal.add(4, {OURS: 100.0})
    print_tables(report(journal, ["bitwright a"], (0.0, 0.0, 0.0)), journal)
    shown = capsys.readouterr().out
    (speed,) = [line.split("\u2502")[1:-1] for line in shown.splitlines() if "q8_0" in line and "1.5" in line]
    assert [cell.strip() for cell in speed] == ["llama.cpp q8_0", "1.5", "tg64", "5", "2", "2.0", "1.0", "3.0", "3"]
    assert "tg64 at depth 5, threads 2" in shown
    assert "3.00 [2.00, 4.00]" in shown
