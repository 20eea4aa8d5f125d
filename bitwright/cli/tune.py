"""``bitwright tune``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import JsonOption, TargetOption, parse_counts

if TYPE_CHECKING:
    from bitwright.autotune.search import Outcome
    from bitwright.autotune.workload import Workload

COLUMNS = ("kernel", "default", "tuned", "gain", "measured", "failed", "knobs")


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|ARTIFACT", help="What to tune for: an artifact, or a model at --scheme.")
    ],
    target: TargetOption = "native",
    scheme: Annotated[str | None, typer.Option(help="Of a model's linear layers. Default: u4g32a8.")] = None,
    tokens: Annotated[
        str, typer.Option(help="Numbers of tokens to tune at, with commas: 1 for decoding, others for prompts.")
    ] = "1,128,512",
    trials: Annotated[int, typer.Option("--trials", "-n", help="Candidates of each kernel.")] = 48,
    strategy: Annotated[str, typer.Option(help="xgboost (a cost model proposes) or random.")] = "xgboost",
    seconds: Annotated[float | None, typer.Option(help="Most seconds for each kernel.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search: equal records and seeds give equal proposals.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RECORDS", help="File to add to. Default: in the user's cache."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search for faster kernels by measuring them on this machine; `bitwright compile` uses what is found.

    Every candidate is kept as soon as it is measured: a run may be interrupted, and goes on when it is repeated.
    """
    from bitwright.timing.tuning import Request, to_json, tune_workloads, workloads_of

    counts = tuple(parse_counts(tokens, "--tokens"))
    request = Request(target, counts, trials, strategy, seconds, seed, output)  # type: ignore[arg-type]  # checked at birth
    workloads = workloads_of(model, request, scheme)
    with console.phases("tuning") as tell:

        def advance(workload: Workload, done: int, wanted: int, best: float | None) -> None:
            gain = "nothing measured yet" if best is None else f"best so far {100 * (1 / best - 1):+.1f} %"
            tell(f"{workload}: {done}/{wanted}, {gain}")

        outcomes = list(tune_workloads(workloads, request, advance))
    if json:
        console.print_json(to_json(outcomes, request))
        return
    console.print_table(COLUMNS, [_cells(outcome) for outcome in outcomes])


def _cells(outcome: Outcome) -> list[str]:
    return [
        str(outcome.task.workload),
        f"{1e6 * outcome.default_seconds:.2f} µs",
        f"{1e6 * outcome.seconds:.2f} µs",
        f"{100 * outcome.gain:+.1f} %",
        str(outcome.measured),
        str(outcome.failed),
        ", ".join(f"{name} {value}" for name, value in outcome.best.items()) if outcome.gain else "default",
    ]
