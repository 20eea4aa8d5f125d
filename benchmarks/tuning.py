"""XGBoost against random search at equal trials, and tuned against default: `python -m benchmarks.tuning -o FOLDER`.

Every candidate of a few workloads is measured once (resumable: FOLDER/grid.jsonl). Both strategies then search these
measurements with several seeds, so that they see the same figures and many searches cost nothing. Written are
FOLDER/tuning.json, a table on stdout, and the best-so-far curves as FOLDER/tuning.png and .svg.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright.autotune.cost_model import XGBoostSearch
from bitwright.autotune.isolation import IsolatedWorker
from bitwright.autotune.linear_task import ENTRY, linear_task, measure_with
from bitwright.autotune.records import Record, RecordFile
from bitwright.autotune.search import BATCH, Task, ratios, records_of
from bitwright.autotune.space import key_of
from bitwright.autotune.strategy import Strategy
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import select_isa
from bitwright.target import Target

WORKLOADS = "3072x576 u4g32a8, 576x1536 u3g32a8, 1536x576 u2g32a8, 576x576 u8g32a8"
NAMES = ("random", "xgboost", "xgboost, other kernels known")


def parse_workloads(text: str, threads: int, isa: str) -> list[Workload]:
    """``"3072x576 u4g32a8, 576x1536 u3g32a8"``: decode kernels."""
    found = []
    for part in text.split(","):
        shape, scheme = part.split()
        found.append(Workload("linear", tuple(map(int, shape.split("x"))), scheme, 1, threads, isa))
    return found


def measure_all(tasks: Sequence[Task], file: RecordFile, seconds: float) -> bool:
    """Measure what has no record yet; False if ``seconds`` were not enough."""
    from bitwright.autotune.search import measured_record

    deadline = time.monotonic() + seconds
    with IsolatedWorker(ENTRY, 30.0) as worker:
        measure = measure_with(worker, "native")
        for task in tasks:
            tried = {key_of(r.knobs) for r in records_of(task.workload, file.records)}
            for knobs in task.space:
                if key_of(knobs) in tried:
                    continue
                if time.monotonic() > deadline:
                    return False
                file.append(measured_record(task.workload, knobs, measure, file.fingerprint))
    return True


@dataclass(frozen=True)
class Curve:
    """After each trial, the best time so far over the best of all candidates; the mean over seeds."""

    workload: Workload
    strategy: str
    best_so_far: tuple[float, ...]


def replay(task: Task, strategy: Strategy, grid: Sequence[Record], known: Sequence[Record], trials: int) -> list[float]:
    """One search on recorded measurements: the best time so far over the optimum after each trial."""
    recorded = {key_of(r.knobs): r for r in records_of(task.workload, grid)}
    optimum = min(ratios(task.workload, grid).values())
    seen: list[Record] = []
    best: list[float] = []
    while len(seen) < trials:
        count = min(BATCH, trials - len(seen))
        for knobs in strategy.propose(task.workload, task.space, [*known, *seen], count):
            record = recorded[key_of(knobs)]
            seen.append(record)
            found = [r.ratio for r in seen if r.ratio is not None]
            best.append(min(found, default=float("inf")) / optimum)
    return best


def curves(tasks: Sequence[Task], grid: Sequence[Record], trials: int, seeds: int) -> list[Curve]:
    """Random search, XGBoost from nothing, and XGBoost that knows the other workloads' records."""
    from bitwright.autotune.strategy import RandomSearch

    found = []
    for task in tasks:
        others = [r for r in grid if r.workload != task.workload]
        for name, known in zip(NAMES, ((), (), others), strict=True):
            runs = []
            for seed in range(seeds):
                strategy: Strategy = RandomSearch(seed) if name == "random" else XGBoostSearch(seed)
                runs.append(replay(task, strategy, grid, known, trials))
            found.append(Curve(task.workload, name, tuple(statistics.fmean(step) for step in zip(*runs, strict=True))))
    return found


def rows(
    tasks: Sequence[Task], grid: Sequence[Record], found: Sequence[Curve], marks: Sequence[int]
) -> list[dict[str, Any]]:
    """For each workload: the gain of the best over the default, and how far each strategy is from it."""
    table = []
    for task in tasks:
        optimum = min(ratios(task.workload, grid).values())
        excess = {
            curve.strategy: {str(mark): curve.best_so_far[mark - 1] - 1 for mark in marks}
            for curve in found
            if curve.workload == task.workload
        }
        row = {"workload": str(task.workload), "candidates": len(task.space), "gain": 1 / optimum - 1, "excess": excess}
        table.append(row)
    return table


def plot(found: Sequence[Curve], folder: Path, seeds: int) -> None:
    """Best-so-far curves, a panel per workload, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    workloads = list(dict.fromkeys(curve.workload for curve in found))
    figure, panels = pyplot.subplots(1, len(workloads), figsize=(4 * len(workloads), 3.2), sharey=True, squeeze=False)
    for workload, panel in zip(workloads, panels[0], strict=True):
        for curve in (c for c in found if c.workload == workload):
            steps = range(1, len(curve.best_so_far) + 1)
            panel.plot(steps, [100 * (best - 1) for best in curve.best_so_far], label=curve.strategy)
        panel.set_title(f"{'x'.join(map(str, workload.shape))} {workload.scheme}", fontsize=9)
        panel.set_xlabel("trials")
        panel.set_yscale("symlog", linthresh=0.5)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"% slower than the best candidate\n(mean of {seeds} seeds)")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"tuning.{suffix}", dpi=140)
    pyplot.close(figure)


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for records, figures and the plot.")],
    workloads: Annotated[str, typer.Option(help="Decode kernels, with commas.")] = WORKLOADS,
    trials: Annotated[int, typer.Option(help="Candidates of a search.")] = 40,
    seeds: Annotated[int, typer.Option(help="Searches of each strategy.")] = 10,
    seconds: Annotated[float, typer.Option(help="Most seconds of measuring; run again to go on.")] = 3600.0,
) -> None:
    """Measure, search, print, plot."""
    target = Target.parse("native")
    chosen = parse_workloads(workloads, target.cores, select_isa(target.features).name)
    tasks = [task for workload in chosen if (task := linear_task(workload, target.tune)) is not None]
    output.mkdir(parents=True, exist_ok=True)
    with RecordFile(output / "grid.jsonl", target.fingerprint) as file:
        if not measure_all(tasks, file, seconds):
            print(f"{len(file.records)} candidates measured; run again to go on", file=sys.stderr)
            raise typer.Exit(1)
        grid = list(file.records)
    trials = min([trials, *(len(task.space) for task in tasks)])
    found = curves(tasks, grid, trials, seeds)
    marks = sorted({min(8, trials), trials // 2, trials})
    table = rows(tasks, grid, found, marks)
    document = {"target": target.fingerprint, "cpu": target.cpu, "trials": trials, "seeds": seeds, "rows": table}
    (output / "tuning.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    plot(found, output, seeds)
    for row in table:
        print(f"{row['workload']}: {row['candidates']} candidates, the best {100 * row['gain']:.1f} % over the default")
        for strategy, excess in row["excess"].items():
            print(f"  {strategy}: " + ", ".join(f"{100 * e:.2f} % off after {n}" for n, e in excess.items()))


if __name__ == "__main__":
    typer.run(main)
