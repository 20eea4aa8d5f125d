"""``bitwright plan diff``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import JsonOption
from bitwright.cli.plan.options import ContextOption, LatenciesOption, ProfileOption, read_costs, read_plan

if TYPE_CHECKING:
    from bitwright.plans.diff import Difference, Uses

NAMES = {"bytes": "bytes", "kl": "predicted KL", "decode_ms": "decode ms", "prefill_ms": "prefill ms"}


def command(
    before: Annotated[Path, typer.Argument(metavar="A", help="A plan file, or an artifact with its plan.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another plan of the same model.")],
    profile: ProfileOption = None,
    context: ContextOption = None,
    latencies: LatenciesOption = None,
    json: JsonOption = False,
) -> None:
    """Show the sites that have different schemes in two plans, those that changed alike together.

    With --profile also what each change adds in bytes, predicted divergence and time.
    """
    from bitwright.plans.diff import difference

    first, second = read_plan(before), read_plan(after)
    found = difference(first, second, read_costs(profile, second, context, latencies))
    if json:
        console.print_json(found.to_json())
        return
    if not found.changes:
        console.note(f"all {found.same} sites have the same schemes")
        return
    _print(found)


def _print(found: Difference) -> None:
    resources = [name for name in NAMES if name in found.after]
    rows = [
        [change.where, change.before, change.after, *(_signed(change.uses, name) for name in resources)]
        for change in found.changes
    ]
    if resources:
        change = {name: found.after[name] - found.before[name] for name in resources}  # type: ignore[index]
        rows.append(["all sites", "", "", *(_signed(change, name) for name in resources)])  # type: ignore[arg-type]
    console.print_table(("sites", "before", "after", *(NAMES[name] for name in resources)), rows)
    changed = sum(len(change.sites) for change in found.changes)
    console.note(f"{changed} sites differ, {found.same} are the same")
    for name in resources:
        console.note(f"{NAMES[name]}: {_plain(found.before, name)} before, {_plain(found.after, name)} after")


def _signed(uses: Uses, name: str) -> str:
    amount = uses[name]  # type: ignore[index]
    return f"{amount:+.0f}" if name == "bytes" else f"{amount:+.3g}"


def _plain(uses: Uses, name: str) -> str:
    amount = uses[name]  # type: ignore[index]
    return f"{amount:.0f}" if name == "bytes" else f"{amount:.4g}"
