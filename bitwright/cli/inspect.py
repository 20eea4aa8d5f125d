"""``bitwright inspect``"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitwright.cli import console
from bitwright.cli.options import JsonOption, ModelArgument, TargetOption


def command(
    model: ModelArgument,
    target: TargetOption = "native",
    context: Annotated[int | None, typer.Option("--context", help="Tokens the cache is counted for.")] = None,
    json: JsonOption = False,
) -> None:
    """List a model's sites, their shapes, the schemes they can have on the target, and bytes at each width."""
    from bitwright.inspection import inspect_model

    with console.phases("reading") as tell:
        found = inspect_model(model, target=target, context=context, progress=tell)
    if json:
        console.print_json(found.to_json())
        return
    console.note(f"{found.name}: {len(found.sites)} sites on {found.isa}, {found.parameters:,} weights in matrices")
    rows = [[s.site.name, s.site.kind, " x ".join(map(str, s.site.shape)), s.notes, s.summary] for s in found.sites]
    console.print_table(("site", "kind", "shape", "", "schemes"), rows)
    print()
    sizes: list[list[Any]] = [[name, f"{total}", console.format_bytes(total)] for name, total in found.totals.items()]
    console.print_table(("all matrices as", "bytes", ""), sizes)
