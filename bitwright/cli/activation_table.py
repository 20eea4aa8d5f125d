"""What int8 activations cost, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitwright.cli import console

if TYPE_CHECKING:
    from bitwright.plans.activations import ActivationLoss

SHOWN = 10
"""Sites with a row of their own."""


def print_activations(inputs: Sequence[ActivationLoss]) -> None:
    """The sites that lose most, all others together, and all: nats per token by the groups of int8 activations.

    A dash stands where a group does not divide every input.
    """
    groups = list(dict.fromkeys(name for loss in inputs for name in loss.eight))

    def cell(losses: Sequence[ActivationLoss], group: str) -> str:
        known = all(group in loss.eight for loss in losses)
        return f"{sum(loss.eight[group] for loss in losses):.2e}" if known else "-"

    def row(name: str, losses: Sequence[ActivationLoss], *more: str) -> list[str]:
        sixteen, share = (sum(values) for values in zip(*((x.sixteen, x.share) for x in losses), strict=True))
        return [name, *(cell(losses, group) for group in groups), f"{sixteen:.2e}", f"{share:.1%}", *more]

    rows = [
        row(loss.site, [loss], "" if loss.peak is None else f"{loss.peak:.0f}", "massive" if loss.massive else "")
        for loss in inputs[:SHOWN]
    ]
    if inputs[SHOWN:]:
        massive = sum(loss.massive for loss in inputs[SHOWN:])
        rows.append(row(f"{len(inputs[SHOWN:])} others", inputs[SHOWN:], "", f"{massive} massive" if massive else ""))
    rows.append(row("all", inputs, "", ""))
    console.print_table(("loses from int8 activations", *groups, "a16", "share", "peak", ""), rows)
