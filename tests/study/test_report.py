"""Rows, tables and pages of fabricated measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bitwright.plan import Plan
from bitwright.study.cell import Cell, Measurements
from bitwright.study.pages import page, pareto
from bitwright.study.registered import STRATEGIES
from bitwright.study.report import Report, Row
from tests.small_profile import plan_of


def row(strategy: str, budget: int, kl: float | None, rate: float | None, target: str = "native") -> Row:
    plan = Plan(plan_of().schemes, "m", "t", {"bytes": budget - 5, "predicted": {"kl": 0.5}})
    sizes = {"bytes": budget - 7, "kv_bytes_per_token": 100}
    figures = {"perplexity": 20.0, "perplexity_second_half": 19.0, "top1": 0.5, "windows": 2, "context": 64}
    quality = None if kl is None else {**sizes, **figures, "kl": {"mean": kl, "p99": 9 * kl}}

    def speed_row(test: str, depth: int, median: float) -> dict[str, Any]:
        return {"test": test, "depth": depth, "tokens_per_second": {"median": median, "mean": median, "sd": 0.0}}

    rows = (
        [] if rate is None else [speed_row("tg4", 16, rate / 2), speed_row("tg4", 0, rate), speed_row("pp32", 0, 900)]
    )
    speed = None if rate is None else {**sizes, "rows": rows}
    return Row(Cell(STRATEGIES[strategy], budget, "native", target, plan, "nats per token"), quality, speed)


REPORT = Report("model", "d" * 64, (row("uniform", 2_000_000, 0.25, 400.0), row("tile", 2_000_000, 0.125, None)))


def test_a_row_says_what_was_measured_and_dashes_what_was_not() -> None:
    columns, cells = REPORT.table()
    assert "for" not in columns and "on" not in columns
    first, second = (dict(zip(columns, line, strict=True)) for line in cells)
    assert first["KL"] == "0.2500" and first["KL 99 %"] == "2.250" and first["decode t/s"] == "400.0"
    assert first["bytes"] == "1999993" and first["budget MB"] == "2.0" and first["top-1 %"] == "50.00"
    assert second["decode t/s"] == "-" and second["predicted KL"] == "0.5"
    assert REPORT.rows[0].decode_ms == 2.5 and REPORT.rows[0].tokens_per_second("tg", 16) == 200.0
    assert (first["depth"], first["decode there"], second["depth"], second["decode there"]) == ("16", "200.0", "-", "-")
    assert "cache MB" not in columns


def test_caches_that_count_are_a_column() -> None:
    rows = tuple(replace(one, context=4096) for one in (*REPORT.rows, row("tile", 1000, None, None)))
    columns, cells = Report("model", "d" * 64, rows).table()
    assert [line[columns.index("cache MB")] for line in cells] == ["0.4", "0.4", "-"]
    assert [one.to_json()["cache_bytes"] for one in rows] == [409_600, 409_600, None]


def test_bytes_are_the_plans_until_the_file_is_there() -> None:
    assert row("tile", 1000, None, None).bytes == 995


def test_targets_are_columns_when_there_are_several() -> None:
    rows = (*REPORT.rows, row("tile", 2_000_000, 0.125, 100.0, target="avx2"))
    columns, cells = Report("model", "d" * 64, rows).table()
    assert cells[2][columns.index("for")] == "native" and cells[2][columns.index("on")] == "avx2"
    assert rows[2].cell.name == "tile@2000000-native-on-avx2"


def test_losses_that_only_compare_are_no_prediction() -> None:
    found = row("greedy-output-mse", 1000, None, None)
    assert replace(found, cell=replace(found.cell, unit="relative")).predicted_kl is None


def test_pictures_need_measurements() -> None:
    assert pareto(REPORT, "bytes-kl") is not None and pareto(REPORT, "ms-kl") is not None
    unmeasured = Report("model", "d" * 64, (row("tile", 1000, None, None),))
    assert pareto(unmeasured, "bytes-kl") is None
    assert "<svg" not in page(unmeasured)


def test_a_page_escapes_what_it_shows() -> None:
    text = page(Report("<model>", "d" * 64, REPORT.rows))
    assert "<model>" not in text and "&lt;model&gt;" in text
    assert STRATEGIES["tile"].about in text and "MPW+UPA" in text


def test_measurements_are_found_by_all_of_their_key(tmp_path: Any) -> None:
    from bitwright.errors import InputError

    measurements = Measurements(tmp_path / "m")
    key = {"stage": "quality", "schemes": "s", "windows": 4}
    assert measurements.find(key) is None
    measurements.put(key, {"kl": 0.5})
    assert measurements.find(dict(reversed(list(key.items())))) == {"kl": 0.5}
    assert measurements.find({**key, "windows": 5}) is None
    (file,) = (tmp_path / "m").iterdir()
    file.write_text("{")
    with pytest.raises(InputError, match="a measurement cannot be read"):
        measurements.find(key)
