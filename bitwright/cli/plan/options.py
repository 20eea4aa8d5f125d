"""Arguments that the verbs of ``bitwright plan`` share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bitwright.plan import Plan
    from bitwright.plans.costs import Costs, Latencies
    from bitwright.sensitivity import Profile

PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file, or an artifact with its plan.")]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", metavar="DIR", help="Folder made by `bitwright profile`: prices schemes.")
]
ContextOption = Annotated[
    int | None,
    typer.Option("--context", help="Cached tokens that count as bytes. Default: the plan's own, else caches do not."),
]
LatenciesOption = Annotated[
    Path | None, typer.Option("--latencies", metavar="TABLE", help="Made by `bitwright latency -o`: prices time.")
]


def read_plan(path: Path) -> Plan:
    """The plan in a file, or in the folder of an artifact.

    Raises:
        InputError: there is none.
    """
    from bitwright.plan import Plan

    return Plan.read(path / "plan.json" if path.is_dir() else path)


def read_costs(
    folder: Path | None, plan: Plan, context: int | None = None, latencies: Path | None = None
) -> Costs | None:
    """What schemes use, by a profile; ``context``: None is the one the plan's budgets name.

    Without latencies activations are what they are in the plan: their width costs time and nothing else.

    Raises:
        UsageError: latencies without a profile.
        InputError: there is no profile, or one of another model than the plan's.
    """
    from bitwright.errors import InputError, UsageError

    if folder is None:
        if latencies is not None:
            raise UsageError("latencies need sites", where="--latencies", remedy="pass the profile too: --profile DIR")
        return None
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
    context = context if context is not None else own
    if latencies is not None:
        return Costs(profile, context, _milliseconds(profile, latencies, context or 1))
    return Costs(profile, context, activations=_activations(plan))


def _milliseconds(profile: Profile, path: Path, context: int) -> Latencies:
    from bitwright.autotune.costs import SiteCosts
    from bitwright.autotune.latency_file import read_table
    from bitwright.autotune.products import Model

    header = profile.header
    table = SiteCosts(read_table(path), Model(header.sites, header.digest), context=context)
    return lambda site, scheme: {"decode_ms": table.decode(site, scheme)}


def _activations(plan: Plan) -> tuple[int, ...]:
    from bitwright.runs import MixedScheme
    from bitwright.scheme import CacheScheme

    found: set[int] = set()
    for scheme in plan.schemes.values():
        if isinstance(scheme, CacheScheme):
            continue
        linear = [run.scheme for run in scheme.runs] if isinstance(scheme, MixedScheme) else [scheme]
        found |= {one.activation.bits for one in linear if not one.weight.is_float}
    return tuple(sorted(found)) or (8,)
