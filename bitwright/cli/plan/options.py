"""Arguments that the verbs of ``bitwright plan`` share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bitwright.plan import Plan
    from bitwright.plans.costs import Costs

PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file, or an artifact with its plan.")]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", metavar="DIR", help="Folder made by `bitwright profile`: prices schemes.")
]
ContextOption = Annotated[
    int | None,
    typer.Option("--context", help="Cached tokens that count as bytes. Default: the plan's own, else caches do not."),
]


def read_plan(path: Path) -> Plan:
    """The plan in a file, or in the folder of an artifact.

    Raises:
        InputError: there is none.
    """
    from bitwright.plan import Plan

    return Plan.read(path / "plan.json" if path.is_dir() else path)


def read_costs(folder: Path | None, plan: Plan, context: int | None = None) -> Costs | None:
    """What schemes use, by a profile; ``context``: None is the one the plan's budgets name.

    Raises:
        InputError: there is no profile, or one of another model than the plan's.
    """
    if folder is None:
        return None
    from bitwright.errors import InputError
    from bitwright.plans.costs import Costs
    from bitwright.sensitivity import Profile

    profile = Profile.read(folder)
    if plan.model and plan.model != profile.header.digest:
        raise InputError(
            "the profile is of another model than the plan",
            where=f"{folder}: {profile.header.digest[:16]}, plan: {plan.model[:16]}",
            remedy="profile the plan's model",
        )
    budgets = plan.notes.get("budgets")
    own = budgets.get("context") if isinstance(budgets, dict) else None
    return Costs(profile, context if context is not None else own)
