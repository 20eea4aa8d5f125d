"""``bitwright plan draw``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import JsonOption
from bitwright.cli.plan.options import (
    ContextOption,
    LatenciesOption,
    PlanArgument,
    ProfileOption,
    read_costs,
    read_plan,
)


def command(
    plan: PlanArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Ends in .png, .svg or .html.")],
    profile: ProfileOption = None,
    context: ContextOption = None,
    latencies: LatenciesOption = None,
    json: JsonOption = False,
) -> None:
    """Draw the bits of every site, layer by layer, and with --profile the Pareto front that the plan lies beside."""
    from bitwright.plans.draw import draw

    found = read_plan(plan)
    name = plan.name if plan.is_dir() else plan.stem
    written = draw(found, output, read_costs(profile, found, context, latencies), name=name)
    if json:
        console.print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        print(path)
    if profile is None:
        console.note("pass --profile DIR to see the Pareto front as well")
