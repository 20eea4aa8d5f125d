"""The tuning benchmark on recorded measurements: equal trials, equal figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitwright.autotune.records import Record
from bitwright.autotune.search import Task
from bitwright.autotune.space import Knobs, Space
from bitwright.autotune.strategy import RandomSearch
from bitwright.autotune.workload import Workload

SPACE = Space.of({"prefetch": tuple(range(0, 6400, 640)), "chain": tuple(range(1, 7))})


def seconds(work: Workload, knobs: Knobs) -> float:
    """A bowl with its bottom at prefetch 3200, chain 4."""
    return 1e-6 * work.shape[0] * (1 + abs(int(knobs["prefetch"]) - 3200) / 3200 + abs(int(knobs["chain"]) - 4) / 8)


def task(outputs: int) -> Task:
    work = Workload("linear", (outputs, 576), "u4g32a8", 1, 2, "avx2")
    return Task(work, SPACE, {"prefetch": 0, "chain": 1})


def grid(*tasks: Task) -> list[Record]:
    return [
        Record("here", t.workload, k, seconds(t.workload, k), None, seconds(t.workload, t.default), {}, "now")
        for t in tasks
        for k in t.space
    ]


def test_workloads_are_parsed() -> None:
    from benchmarks.tuning import parse_workloads

    first, second = parse_workloads("3072x576 u4g32a8, 576x1536 u3g32a8", 2, "avx2")
    assert str(first) == "linear 3072x576 u4g32a8 m1 t2 avx2" and second.shape == (576, 1536)


def test_a_replayed_search_gets_better_until_nothing_is_left() -> None:
    from benchmarks.tuning import replay

    one = task(576)
    best = replay(one, RandomSearch(1), grid(one), (), len(SPACE))
    assert len(best) == len(SPACE) and best == sorted(best, reverse=True) and best[-1] == pytest.approx(1)


def test_the_table_and_plot_show_the_cost_model_ahead(tmp_path: Path) -> None:
    from benchmarks.tuning import NAMES, curves, plot, rows

    tasks = [task(576), task(1536)]
    measured = grid(*tasks)
    found = curves(tasks, measured, trials=24, seeds=2)
    assert [(c.workload, c.strategy) for c in found] == [(t.workload, name) for t in tasks for name in NAMES]
    table: list[dict[str, Any]] = rows(tasks, measured, found, [8, 24])
    # The default costs (1 + 1 + 3/8) times the bottom of the bowl.
    assert [row["gain"] for row in table] == pytest.approx([1.375, 1.375])
    for row in table:
        excess = row["excess"]
        assert excess["xgboost"]["24"] <= excess["random"]["24"]
        assert excess[NAMES[2]]["8"] < 0.05
    plot(found, tmp_path, 2)
    assert (tmp_path / "tuning.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "tuning.svg").read_text()
