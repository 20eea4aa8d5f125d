"""``bitwright study``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import JsonOption, ModelArgument, ThreadsOption, parse_counts
from bitwright.sizes import parse_size


def command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="REPORT", help="Folder of the report.")],
    max_bytes: Annotated[
        list[str], typer.Option("--max-bytes", help="A budget, such as 60MB or 60MiB (may be repeated).")
    ],
    text: Annotated[Path | None, typer.Option("--text", help="File of UTF-8 text that quality is measured on.")] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="Name or pattern (may be repeated); `list` shows all. Default: a few."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="As of compile. Several: plans for each are measured on all. Default: native."),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option("--profile", metavar="DIR", help="Made by `bitwright profile` (may be repeated). Else made here."),
    ] = None,
    latencies: Annotated[
        list[Path] | None,
        typer.Option("--latencies", metavar="TABLE", help="Made by `bitwright latency -o` (may be repeated)."),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", help="Cached tokens that count as bytes. Default: the cache does not.")
    ] = None,
    quantizer: Annotated[
        str | None, typer.Option("--quantizer", help="As of compile. Default: the profile's, else auto.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="As of compile. Default: the model samples one."),
    ] = None,
    ctx: Annotated[int, typer.Option("--ctx", help="Tokens of a window of the text.")] = 512,
    windows: Annotated[int | None, typer.Option("--windows", help="Most windows to score. Default: all.")] = None,
    prompt: Annotated[int, typer.Option("--prompt", "-p", help="Tokens of the prompt that prefill is timed on.")] = 512,
    new: Annotated[int, typer.Option("--new", "-n", help="Tokens that decoding is timed on.")] = 64,
    depth: Annotated[
        str, typer.Option("--depth", "-d", help="Tokens in the cache before decoding, with commas.")
    ] = "0",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Timed runs of each test.")] = 5,
    threads: ThreadsOption = None,
    measure: Annotated[
        str, typer.Option("--measure", help="quality,speed or one of them; the other can follow with the same report.")
    ] = "quality,speed",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the artifacts (else they go once measured).")] = False,
    json: JsonOption = False,
) -> None:
    """Solve one model's budgets by several strategies, compile every plan, measure it, and compare.

    Nothing is simulated. What was measured is kept: an interrupted study goes on when it is repeated, and more budgets
    or strategies can be added to a report.
    """
    from bitwright.study.registered import STRATEGIES, chosen
    from bitwright.study.request import DEFAULT_STRATEGIES, StudyRequest
    from bitwright.study.run import run_study

    names = tuple(strategy or DEFAULT_STRATEGIES)
    if names == ("list",):
        console.print_table(("strategy", "what it does"), [[s.name, s.about] for s in STRATEGIES.values()])
        return
    chosen(names)
    request = StudyRequest(
        model=model,
        budgets=tuple(parse_size(size, "--max-bytes") for size in max_bytes),
        text=text,
        strategies=names,
        targets=tuple(target or ["native"]),
        profiles=tuple(profile or []),
        latencies=tuple(latencies or []),
        context=context,
        quantizer=quantizer,  # type: ignore[arg-type]  # checked at birth
        calibration=calibration,
        windows=windows,
        window=ctx,
        prompt=prompt,
        new=new,
        depths=tuple(parse_counts(depth, "--depth")),
        repetitions=repetitions,
        threads=threads,
        stages=tuple(stage.strip() for stage in measure.split(",")),  # type: ignore[misc]  # checked at birth
        keep=keep,
    )
    with console.phases("studying") as tell:
        report = run_study(request, output, tell=tell)
    if json:
        console.print_json(report.to_json())
        return
    columns, rows = report.table()
    console.print_table(columns, rows)
    for row in report.rows:
        if row.cell.infeasible:
            console.note(f"{row.cell.name}: {row.cell.infeasible.splitlines()[0]}")
    console.note(f"written: {output / 'report.html'}, results.json, results.csv, pictures")
