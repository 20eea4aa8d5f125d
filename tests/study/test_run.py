"""A whole study of a tiny model: compiled, measured, interrupted, resumed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitwright import pipeline
from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.errors import InputError, UsageError
from bitwright.study.measure import Laboratory
from bitwright.study.report import Report
from bitwright.study.request import StudyRequest
from bitwright.study.run import run_study
from tests.frontend import zoo

STRATEGIES = ("uniform", "tile")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.save_hf_folder("llama_tied", tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module", autouse=True)
def read_once(model: Path) -> Iterator[None]:
    """Exporting the model takes longer than compiling it."""
    imported = pipeline.load_model(str(model), lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_model", lambda *_: imported)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(zoo.SENTENCES * 4), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    folder = tmp_path_factory.mktemp("profile") / "p"
    schemes = ("u3g32", "u4g32", "u6g32", "u8g32", "k8g32", "v8g32")
    profile_model(model, folder, ProfileOptions(schemes=schemes, quantizer="rtn", calibration=text, tokens=256))
    return folder


def request(model: Path, text: Path | None, profile: Path, *budgets: int, **changes: Any) -> StudyRequest:
    options: dict[str, Any] = {
        "strategies": STRATEGIES,
        "profiles": (profile,),
        "quantizer": "rtn",
        "window": 64,
        "windows": 2,
        "prompt": 32,
        "new": 4,
        "repetitions": 1,
        "threads": 1,
    }
    return StudyRequest(str(model), budgets, text, **(options | changes))


BUDGET = 900_000


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path, profile: Path) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("report") / "r"
    return folder, run_study(request(model, text, profile, BUDGET), folder)


def test_every_plan_is_compiled_and_measured_within_its_budget(studied: tuple[Path, Report]) -> None:
    _, report = studied
    assert [row.cell.strategy.name for row in report.rows] == list(STRATEGIES)
    for row in report.rows:
        assert row.cell.plan is not None
        # What was measured is the file; what the plan says was computed from the profile.
        assert row.bytes == row.cell.plan.notes["bytes"] <= BUDGET
        assert row.kl is not None and row.kl > 0
        assert row.tokens_per_second("tg") and row.tokens_per_second("pp")


def test_the_report_holds_the_same_rows_in_every_form(studied: tuple[Path, Report]) -> None:
    folder, report = studied
    document = json.loads((folder / "results.json").read_text())
    assert document == json.loads(json.dumps(report.to_json()))
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [float(row["kl_mean"]) for row in rows] == [row["quality"]["kl"]["mean"] for row in document["rows"]]
    assert [row["granularity"] for row in rows] == ["model", "tile"]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 and all(name in page for name in STRATEGIES) and "src=" not in page
    names = {path.name for path in (folder / "results").iterdir()}
    assert names == {f"{name}@{BUDGET}-native.json" for name in STRATEGIES}
    assert (folder / "bytes-kl.png").exists() and (folder / "ms-kl.png").exists()


def test_a_profile_in_order_is_not_studied_without_calibration(tmp_path: Path, model: Path, text: Path) -> None:
    options = ProfileOptions(
        schemes=("u3g32", "u8g32"), quantizer="gptq", calibration=text, tokens=256, reorder=True, weigh_tokens=True
    )
    assert profile_model(model, tmp_path / "p", options).header.reordered
    wanted = request(model, None, tmp_path / "p", BUDGET, strategies=("tile",), stages=("speed",))
    with pytest.raises(UsageError, match="the profile is of units in order"):
        run_study(wanted, tmp_path / "r")


def test_artifacts_go_once_they_are_measured(studied: tuple[Path, Report]) -> None:
    assert list((studied[0] / "artifacts").iterdir()) == []


def test_nothing_is_measured_twice(
    studied: tuple[Path, Report], model: Path, text: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, report = studied

    def never(*_: Any) -> Any:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(Laboratory, "compiled", never)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = run_study(request(model, text, profile, BUDGET), folder)
    assert again.to_json() == report.to_json()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_speeds_alone_need_no_text(model: Path, profile: Path, tmp_path: Path) -> None:
    asked = request(model, None, profile, BUDGET, strategies=("uniform",), stages=("speed",))
    (row,) = run_study(asked, tmp_path / "r").rows
    assert row.kl is None and row.tokens_per_second("tg")


def test_an_interrupted_study_keeps_what_it_has(
    studied: tuple[Path, Report], model: Path, text: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, report = studied

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    # Another budget is added, and cut off in its first measurement of speed.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Laboratory, "_speed", interrupted)
        run_study(request(model, text, profile, BUDGET, 780_000, strategies=("uniform",)), folder)
    measured = len(list((folder / "measured").iterdir()))
    finished = run_study(request(model, text, profile, BUDGET, 780_000, strategies=("uniform",), keep=True), folder)
    assert len(list((folder / "measured").iterdir())) == measured + 1
    assert finished.rows[0].to_json() == report.rows[0].to_json()
    assert finished.rows[1].kl is not None and finished.rows[1].decode_ms is not None
    assert len(list((folder / "artifacts").iterdir())) == 1


def test_a_budget_that_cannot_be_met_is_a_row(model: Path, text: Path, profile: Path, tmp_path: Path) -> None:
    report = run_study(request(model, text, profile, 1000), tmp_path / "r")
    assert all(row.cell.infeasible and row.kl is None for row in report.rows)
    columns, rows = report.table()
    assert rows[0][columns.index("KL")] == "-"
    assert "no choice fits into 1000 bytes" in (tmp_path / "r" / "report.html").read_text()


def test_what_makes_no_sense_is_refused(model: Path, text: Path, profile: Path, tmp_path: Path) -> None:
    for changes, what in (
        ({"stages": ("taste",)}, "'taste' cannot be measured"),
        ({"quantizer": "luck"}, "'luck' is not a quantizer"),
        ({"targets": ()}, "a study needs a target"),
    ):
        with pytest.raises(UsageError, match=what):
            request(model, text, profile, BUDGET, **changes)
    with pytest.raises(UsageError, match="quality is measured on a text"):
        request(model, None, profile, BUDGET)
    with pytest.raises(UsageError, match="a study needs budgets"):
        request(model, text, profile)
    with pytest.raises(InputError, match="there is no profile here"):
        run_study(request(model, text, tmp_path, BUDGET), tmp_path / "r")
