"""``bitwright latency``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import JsonOption, ModelArgument, TargetOption, parse_counts

if TYPE_CHECKING:
    from bitwright.autotune.predict import Prediction
    from bitwright.timing.latency_report import Forecast, Report


def command(
    model: ModelArgument,
    target: TargetOption = "native",
    schemes: Annotated[
        str | None,
        typer.Option(
            help="Schemes of products to measure, with commas (u4g32a8: int8 activations). Default: some of each width."
        ),
    ] = None,
    caches: Annotated[str | None, typer.Option(help="Pairs of cache schemes such as k4g32v4g32, with commas.")] = None,
    threads: Annotated[
        str | None, typer.Option("--threads", "-t", help="Numbers of threads, with commas. Default: all cores.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Also measure what this plan is made of, and predict its time.")
    ] = None,
    context: Annotated[int, typer.Option("--context", help="Tokens in the cache of a predicted step.")] = 1,
    prompt: Annotated[int, typer.Option("-p", "--prompt", help="Tokens of a predicted prompt.")] = 512,
    measure: Annotated[bool, typer.Option(help="Measure what is lacking, or answer from what there is.")] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="TABLE", help="File to add to. Default: in the user's cache."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure how long a model's kernels take at each scheme, and predict whole steps and prompts from that.

    What a file holds is not measured again: an interrupted run goes on when it is repeated.
    """
    from bitwright.timing.latencies import CACHES, SCHEMES, Request
    from bitwright.timing.latency_report import report

    request = Request(
        target,
        SCHEMES if schemes is None else _names(schemes),
        CACHES if caches is None else _names(caches),
        () if threads is None else tuple(parse_counts(threads, "--threads")),
        output,
    )
    with console.phases("latency") as tell:
        found = report(model, request, tell, plan=plan, context=context, prompt=prompt, measure=measure)
    if json:
        console.print_json(found.to_json())
        return
    _print(found)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print(found: Report) -> None:
    console.note(f"{found.file}: {found.kernels} measurements of {found.isa}, digest {found.digest[:16]}")
    if found.disturbed:
        worst = max(found.disturbed, key=lambda what: found.disturbed[what])
        console.note(
            f"{len(found.disturbed)} of them were disturbed by other work on the machine and scatter, the most "
            f"{worst} (by {100 * found.disturbed[worst]:.0f} %); the same command measures them again"
        )
    for threads, rows in found.uniform.items():
        shapes = [f"{outputs}x{inputs}" for outputs, inputs in found.shapes]
        step, prompt = f"step at {found.context}", f"prompt of {found.prompt}"
        print(f"threads {threads}: µs of each product of one token, ms of a whole step and prompt")
        console.print_table(
            ("scheme", *shapes, step, prompt),
            [
                [name, *("-" if t is None else f"{1e3 * t:.1f}" for t in row.products), *_cells(row)]
                for name, row in rows
            ],
        )
        if found.errors[threads]:
            print("; ".join(f"{what}: {100 * error:.1f} %" for what, error in found.errors[threads].items()))
    for threads, forecast in found.plan.items():
        step, prompt = _cells(forecast)
        print(f"the plan on threads {threads}: step {step} ms, prompt {prompt} ms")


def _cells(row: Forecast) -> tuple[str, str]:
    """A step and a prompt with the error that is expected."""
    return _cell(row.step), _cell(row.prompt)


def _cell(time: Prediction | None) -> str:
    return "-" if time is None else f"{time.milliseconds:.3f} ±{100 * time.relative_error:.0f} %"
