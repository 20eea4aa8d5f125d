"""A study's pictures and its page, which needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING

from bitwright.drawing import inline_svg, new_figure
from bitwright.study.report import Report, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X<>hp"

AXES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "bytes-kl": ("MB", lambda row: None if row.bytes is None else row.bytes / 1e6),
    "ms-kl": ("decode, ms per token", lambda row: row.decode_ms),
}
"""Pictures: name to the label and the values of the horizontal axis."""


def pareto(report: Report, name: str) -> Figure | None:
    """Measured divergence over size or time, a line for each strategy; None if nothing was measured."""
    label, across = AXES[name]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in report.rows:
        x, y = across(row), row.kl
        if x is not None and y is not None:
            lines.setdefault(_series(report, row), []).append((x, y))
    if not lines:
        return None
    figure = new_figure(7.0, 4.6)
    axes = figure.subplots()
    for number, (series, points) in enumerate(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker=MARKERS[number % len(MARKERS)], label=series)
    if all(y > 0 for points in lines.values() for _, y in points):
        axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("KL to the float model, nats per token")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _series(report: Report, row: Row) -> str:
    several = len({other.cell.target for other in report.rows}) > 1
    if not several:
        return row.cell.strategy.name
    return f"{row.cell.strategy.name}, for {row.cell.solved_for} on {row.cell.target}"


def page(report: Report) -> str:
    """The report as one HTML document."""
    from jinja2 import Environment

    template = files("bitwright").joinpath("data", "study.html.j2").read_text(encoding="utf-8")
    columns, rows = report.table()
    pictures = {name: figure for name in AXES if (figure := pareto(report, name)) is not None}
    text: str = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            report=report,
            columns=columns,
            rows=rows,
            pictures={name: inline_svg(figure) for name, figure in pictures.items()},
            strategies={row.cell.strategy.name: row.cell.strategy for row in report.rows},
            infeasible=[row.cell for row in report.rows if row.cell.infeasible],
        )
    )
    return text
