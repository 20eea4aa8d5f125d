"""Does a plan belong to its target? Plans for several targets within the same bytes, each compiled for all of them.

    python -m benchmarks.targets MODEL PROFILE --max-bytes 60MB,78MB --latencies T1.json --latencies T2.json \\
        --calibration TEXT -o DIR

``bitwright latency --target TARGET -o FILE`` makes the tables; this machine must run the code of every target. A plan
is the fastest to decode at no more than 1.1 times the least predicted divergence (``bitwright study``). Artifacts are
timed in turns, so that a slow minute of the machine hits all of them; ratios are taken within a round. Weights have the
codes that the profile kept, if it kept them: speed does not depend on codes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from bitwright.cli.console import print_table
from bitwright.sizes import parse_size
from bitwright.study.cell import Cell
from bitwright.study.measure import Laboratory
from bitwright.study.registered import chosen
from bitwright.study.request import StudyRequest
from bitwright.study.solve import Desk

if TYPE_CHECKING:
    from bitwright.runtime.session import Session

NEW, PROMPT = 32, 512


@dataclass(frozen=True)
class Timed:
    """A plan on a target. ``decode``: milliseconds per token of each round; ``prompt``: of a prompt of 512 tokens."""

    max_bytes: int
    solved_for: str
    target: str
    bytes: int
    predicted_kl: float
    predicted_decode: float
    predicted_prompt: float
    decode: tuple[float, ...]
    prompt: tuple[float, ...]


def measure(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Each call's result of every round, after one that does not count; the order changes from round to round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        names = list(calls) if number % 2 else list(calls)[::-1]
        for name in names:
            figure = calls[name]()
            if number:
                found[name].append(figure)
    return {name: tuple(figures) for name, figures in found.items()}


def decode_milliseconds(session: Session) -> float:
    """Per token, behind a few others."""
    ids = np.random.default_rng(0).integers(0, session.vocab, 4 + NEW).tolist()
    session.reset()
    session.prefill(ids[:4])
    start = time.perf_counter()
    for token in ids[4:]:
        session.advance(token)
    return 1e3 * (time.perf_counter() - start) / NEW


def prompt_milliseconds(session: Session) -> float:
    ids = np.random.default_rng(0).integers(0, session.vocab, PROMPT)
    session.reset()
    start = time.perf_counter()
    session.prefill(ids)
    return 1e3 * (time.perf_counter() - start)


def timed(desk: Desk, laboratory: Laboratory, cells: Sequence[Cell], rounds: int, threads: int | None) -> list[Timed]:
    """Cells of one budget, compiled and timed in turns."""
    from bitwright.runtime.session import load

    sessions = {cell.name: load(laboratory.compiled(cell), threads=threads) for cell in cells}
    decode = measure({name: lambda s=s: decode_milliseconds(s) for name, s in sessions.items()}, rounds)  # type: ignore[misc]
    prompt = measure({name: lambda s=s: prompt_milliseconds(s) for name, s in sessions.items()}, rounds)  # type: ignore[misc]
    found = []
    for cell in cells:
        assert cell.plan is not None
        latencies = desk.problem(cell.strategy.metric, cell.max_bytes, cell.target).latencies
        assert latencies is not None
        schemes = cell.plan.schemes
        found.append(
            Timed(
                cell.max_bytes,
                cell.solved_for,
                cell.target,
                sessions[cell.name].manifest.run_bytes,
                float(cell.plan.notes["predicted"]["kl"]),
                latencies.step(schemes),
                latencies.prompt(schemes, PROMPT),
                decode[cell.name],
                prompt[cell.name],
            )
        )
    return found


def slower(found: Sequence[Timed], one: Timed, what: str) -> tuple[float, ...]:
    """Times that a plan takes over the time of the target's own, of each round; empty for that plan itself."""
    if one.solved_for == one.target:
        return ()
    own = next(t for t in found if t.solved_for == t.target == one.target and t.max_bytes == one.max_bytes)
    return tuple(mine / best for mine, best in zip(getattr(one, what), getattr(own, what), strict=True))


def row(found: Sequence[Timed], one: Timed) -> list[str]:
    """One line of the table."""
    cells = [f"{one.max_bytes / 1e6:g} MB", one.solved_for, one.target, str(one.bytes), f"{one.predicted_kl:.4f}"]
    for what, predicted in (("decode", one.predicted_decode), ("prompt", one.predicted_prompt)):
        figures, ratios = getattr(one, what), slower(found, one, what)
        cells += [f"{predicted:.3f}", f"{median(figures):.3f} [{min(figures):.3f}-{max(figures):.3f}]"]
        cells.append(f"{median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}]" if ratios else "")
    return cells


def main(
    model: Annotated[str, typer.Argument(help="As `bitwright compile` takes it.")],
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="Folder made by `bitwright profile`.")],
    max_bytes: Annotated[str, typer.Option(help="Budgets, with commas.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for plans and artifacts, and to go on in.")],
    latencies: Annotated[list[Path], typer.Option(help="Table of a target; once for each.")],
    targets: Annotated[str, typer.Option(help="Targets, with commas.")] = "native,avx2",
    strategy: Annotated[str, typer.Option(help="fastest, or fastest-matrix, which compiles sooner.")] = "fastest",
    calibration: Annotated[
        Path | None, typer.Option(help="Text that the profile was calibrated on; needed if it was on a text.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of all artifacts in turns.")] = 9,
    threads: Annotated[int | None, typer.Option("--threads", "-t")] = None,
    compile_only: Annotated[bool, typer.Option(help="Stop before anything is timed.")] = False,
) -> None:
    budgets = tuple(parse_size(text, "--max-bytes") for text in max_bytes.split(","))
    request = StudyRequest(
        model,
        budgets,
        strategies=(strategy,),
        targets=tuple(targets.split(",")),
        profiles=(profile,),
        latencies=tuple(latencies),
        calibration=calibration,
        stages=("speed",),
        keep=True,
    )

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    strategies = chosen(request.strategies)
    desk = Desk(request, output, tell)
    cells = [cell for cell in desk.cells(strategies) if cell.plan is not None]
    laboratory = Laboratory.of(desk, desk.digest(strategies), desk.profile(strategies[0].metric))
    for cell in cells:
        laboratory.compiled(cell)
    if compile_only:
        return
    found: list[Timed] = []
    for budget in budgets:
        found += timed(desk, laboratory, [cell for cell in cells if cell.max_bytes == budget], rounds, threads)
    (output / "targets.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    names = ("budget", "plan for", "on", "bytes", "KL (predicted)")
    times = ("predicted ms", "measured ms", "over the target's own")
    print_table((*names, *times, *(f"prompt: {name}" for name in times)), [row(found, one) for one in found])


if __name__ == "__main__":
    typer.run(main)
