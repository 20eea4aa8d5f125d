"""The study as one function: solve, compile, measure, write the report. It goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bitwright.drawing import rendered, write_whole
from bitwright.errors import InputError
from bitwright.study.cell import Cell, encode
from bitwright.study.measure import Laboratory
from bitwright.study.pages import AXES, page, pareto
from bitwright.study.registered import chosen
from bitwright.study.report import Report, Row
from bitwright.study.request import StudyRequest
from bitwright.study.solve import Desk

Tell = Callable[[str], None]


def run_study(request: StudyRequest, folder: Path, *, tell: Tell | None = None) -> Report:
    """Run a study, or what is missing of it, and write its report.

    ``folder`` gets ``plans/``, ``measured/`` (one file per plan and stage), ``results/`` (one file per strategy, budget
    and target), ``results.json``, ``results.csv``, the pictures as PNG, and ``report.html``. The report is written anew
    after each measurement.

    Args:
        tell: called with what is being done, and how much of all is done.

    Raises:
        UsageError, InputError, UnsupportedError: see profiling, compiling and measuring.
    """
    tell = tell or (lambda _: None)
    strategies = chosen(request.strategies)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "the report cannot be written", where=str(folder), limit=error.strerror, remedy="choose another folder"
        ) from error
    desk = Desk(request, folder, tell)
    digest, first = desk.digest(strategies), desk.profile(strategies[0].metric)
    cells = list(desk.cells(strategies))
    laboratory = Laboratory.of(desk, digest, first)
    for number, cell in enumerate(cells):
        laboratory.tell = _prefixed(tell, f"{number}/{len(cells)} done, {cell.name}")
        laboratory.measure(cell)
        _write(folder, _report(request, digest, cells, laboratory))
    return _report(request, digest, cells, laboratory)


def _prefixed(tell: Tell, prefix: str) -> Tell:
    return lambda text: tell(f"{prefix}: {text}")


def _report(request: StudyRequest, digest: str, cells: Sequence[Cell], laboratory: Laboratory) -> Report:
    rows = [
        Row(cell, laboratory.found(cell, "quality"), laboratory.found(cell, "speed"), request.context) for cell in cells
    ]
    return Report(request.model, digest, tuple(rows))


def _write(folder: Path, report: Report) -> None:
    (folder / "results").mkdir(exist_ok=True)
    for row in report.rows:
        write_whole(folder / "results" / f"{row.cell.name}.json", encode(row.to_json()))
    write_whole(folder / "results.json", encode(report.to_json()))
    write_whole(folder / "results.csv", report.to_csv().encode())
    for name in AXES:
        figure = pareto(report, name)
        if figure is not None:
            write_whole(folder / f"{name}.png", rendered(figure, "png"))
    write_whole(folder / "report.html", page(report).encode())
