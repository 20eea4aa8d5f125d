"""``bitwright study``: its strategies, its output on a fabricated report, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitwright.study.request import StudyRequest
from tests.study.test_report import REPORT


def test_strategies_are_listed(command: Any, tmp_path: Path) -> None:
    done = command("study", "model", "-o", tmp_path, "--max-bytes", "1MB", "-s", "list")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert all(
        f"\n{name} " in shown for name in ("uniform", "two-level", "knapsack-fisher", "tile", "joint", "fastest")
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[StudyRequest]:
    from bitwright.study import run

    requests: list[StudyRequest] = []

    def study(request: StudyRequest, folder: Path, **_: Any) -> Any:
        requests.append(request)
        return REPORT

    monkeypatch.setattr(run, "run_study", study)
    return requests


def test_the_table_and_the_document(command: Any, asked: list[StudyRequest], tmp_path: Path) -> None:
    arguments = ("study", "model", "-o", tmp_path, "--max-bytes", "2MB", "--max-bytes", "1MiB", "--text", "t.txt")
    done = command(*arguments, "-s", "uniform", "-s", "tile", "--depth", "0,16", "--target", "avx2")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.decode().splitlines()
    assert header.split()[:3] == ["strategy", "budget", "MB"] and [line.split()[0] for line in rows] == [
        "uniform",
        "tile",
    ]
    assert asked[0].budgets == (2_000_000, 1 << 20) and asked[0].depths == (0, 16) and asked[0].targets == ("avx2",)
    document = json.loads(command(*arguments, "--json").stdout)
    assert document["rows"][0]["quality"]["kl"]["mean"] == 0.25
    assert document["rows"][0]["coordinates"]["granularity"] == "model"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--max-bytes", "much"], "'much' is not a size"),
        (["--max-bytes", "1MB", "-s", "luck"], "'luck' is no strategy"),
        (["--max-bytes", "1MB"], "quality is measured on a text"),
        (["--max-bytes", "1MB", "--measure", "taste"], "'taste' cannot be measured"),
        (["--max-bytes", "1MB", "--depth", "x"], "'x' is no list of counts"),
        (["--max-bytes", "1MB", "--measure", "speed", "--quantizer", "luck"], "'luck' is not a quantizer"),
    ],
)
def test_what_makes_no_sense_is_refused(command: Any, tmp_path: Path, arguments: list[str], text: str) -> None:
    done = command("study", "model", "-o", tmp_path, *arguments)
    assert done.returncode == 2 and text in done.stderr.decode()
