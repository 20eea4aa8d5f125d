"""``bitwright allocate``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import (
    AvgBitsOption,
    JsonOption,
    LatencyOption,
    MaxBytesOption,
    MaxDecodeOption,
    MaxKldOption,
    MaxPrefillOption,
)
from bitwright.sizes import parse_size

if TYPE_CHECKING:
    from bitwright.allocation import Allocation


def command(
    profile: Annotated[Path, typer.Argument(metavar="DIR", help="Folder made by `bitwright profile`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PLAN", help="Plan file to write.")],
    max_bytes: MaxBytesOption = None,
    max_decode_ms: MaxDecodeOption = None,
    max_prefill_ms: MaxPrefillOption = None,
    max_kld: MaxKldOption = None,
    avg_bits: AvgBitsOption = None,
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens in the cache. Default: the cache does not count.")
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens of the prompt for --max-prefill-ms.")] = 512,
    minimise: Annotated[
        str | None, typer.Option(help="kl, bytes, decode_ms or prefill_ms. Default: kl, or bytes with --max-kld.")
    ] = None,
    grain: Annotated[
        str, typer.Option(help="tile: matrices may be cut into runs of rows; matrix: they may not.")
    ] = "tile",
    max_runs: Annotated[
        int,
        typer.Option(
            "--max-runs",
            help="Runs of a matrix at most (of the token table twice as many): fewer compile faster.",
        ),
    ] = 3,
    latency: LatencyOption = None,
    correct: Annotated[
        int, typer.Option("--correct", help="Rounds of measuring the plan and correcting the scores.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Choose the scheme of every matrix, activation and cache under budgets, and write the plan.

    Exit code 4: no plan meets the budgets; the message says what can be achieved.
    """
    from bitwright.allocation import Budgets
    from bitwright.budgets.allocating import settings_for
    from bitwright.budgets.correction import allocate_corrected
    from bitwright.sensitivity import Profile

    budgets = Budgets(
        None if max_bytes is None else parse_size(max_bytes, "--max-bytes"),
        max_decode_ms,
        max_prefill_ms,
        max_kld,
        avg_bits,
        context,
        prompt,
        minimise,  # type: ignore[arg-type]  # __post_init__ checks the value
    )
    known = Profile.read(profile)
    settings = settings_for(known, budgets, grain, latency, max_runs)
    with console.phases("allocating") as tell:
        found = allocate_corrected(known, budgets, settings, correct, tell)
    found.plan.write(output)
    if json:
        console.print_json({"plan": str(output), **found.to_json()})
        return
    console.print_table(
        ("plan", "value"), [*_rows(output, found), ["compile with", " ".join(known.header.compile_options)]]
    )


def _rows(output: Path, found: Allocation) -> list[list[str]]:
    """What people want to know."""
    binding = ", ".join(found.binding) or "none: everything is at its best"
    return [
        ["plan", str(output)],
        ["weights", f"{found.bytes} bytes ({console.format_bytes(found.bytes)})"],
        ["cache", console.format_cache(found.kv_bytes_per_token, found.kv_fixed_bytes)],
        *([f"predicted {name}", f"{value:.5g}"] for name, value in found.predicted.items()),
        *([f"measured {name}", f"{value:.5g}"] for name, value in found.measured.items()),
        ["gap", f"at most {100 * found.gap:.4f} %"],
        ["binding", binding],
    ]
