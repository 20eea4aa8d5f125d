"""``bitwright plan explain``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from bitwright.plan import Plan
    from bitwright.plans.costs import Costs
    from bitwright.plans.explain import Explanation, Reason
    from bitwright.plans.moves import Move

COLUMNS = ("site", "scheme", "bits", "bytes", "predicted KL", "a byte more saves", "a byte less costs", "why")
MOVES = ("scheme", "bits", "bytes", "predicted KL", "with its charges", "")

UNITS = {"bytes": "byte", "decode_ms": "millisecond of a step", "prefill_ms": "millisecond of a prompt"}


def command(
    plan: PlanArgument,
    profile: ProfileOption = None,
    site: Annotated[str | None, typer.Option("--site", help="One site, with every scheme it could have.")] = None,
    context: ContextOption = None,
    latencies: LatenciesOption = None,
    json: JsonOption = False,
) -> None:
    """Show why each site of a plan got its bits.

    An optimal plan has one price of a byte, in nats per token: whatever it stores saves more than that, whatever it
    leaves out would save less. Without --profile only what the plan says of itself is shown.
    """
    from bitwright.errors import UsageError
    from bitwright.plans.explain import explain

    found = read_plan(plan)
    if site is not None and site not in found.schemes:
        raise UsageError(
            f"the plan has no site {site}", where="--site", remedy="leave --site out to see the names of all"
        )
    costs = read_costs(profile, found, context, latencies)
    if costs is None:
        _without_profile(found, site, json)
        return
    explanation = explain(found, costs)
    reasons = [reason for reason in explanation.reasons if site in (None, reason.site.name)]
    if json:
        document = explanation.to_json()
        console.print_json({**document, "sites": [reason.to_json() for reason in reasons]})
        return
    _price(found, explanation)
    if site is None:
        console.print_table(COLUMNS, [_row(reason) for reason in reasons])
    else:
        _one(reasons[0], explanation, costs)


def _without_profile(plan: Plan, site: str | None, json: bool) -> None:
    from bitwright.plans.bits import bits_per_number

    wanted = {name: scheme for name, scheme in plan.schemes.items() if site in (None, name)}
    if json:
        console.print_json({"notes": dict(plan.notes), "sites": {name: s.name for name, s in wanted.items()}})
        return
    for name, value in plan.notes.items():
        console.note(f"{name}: {value}")
    console.note("pass --profile DIR to see what each site's bytes are worth")
    rows = [[name, str(scheme), f"{bits_per_number(scheme, None):.2f}"] for name, scheme in wanted.items()]
    console.print_table(("site", "scheme", "bits"), rows)


def _price(plan: Plan, explanation: Explanation) -> None:
    charges = ", ".join(f"{price:.3e} nats per {UNITS[name]}" for name, price in explanation.price.charges.items())
    source = "the plan's own" if explanation.stated else "read off the plan, which states none"
    console.note(f"price: {charges or 'nothing is charged for'} ({source})")
    if plan.notes.get("binding"):
        console.note(f"binding: {', '.join(map(str, plan.notes['binding']))}")


def _row(reason: Reason) -> list[str]:
    uses = reason.decision.uses
    found = reason.neighbours
    return [
        reason.site.name,
        reason.decision.scheme.name,
        f"{reason.bits:.2f}",
        f"{uses['bytes']:.0f}",
        f"{uses['kl']:.2e}",
        f"{found.up.value:.2e}" if found.up else "-",
        f"{found.down.value:.2e}" if found.down else "-",
        reason.verdict,
    ]


def _one(reason: Reason, explanation: Explanation, costs: Costs) -> None:
    """The site's whole menu, cheapest at the price first, then its nearest moves."""
    own = reason.decision
    menu = {d.scheme: d for d in costs.menu(reason.site.name)} | {own.scheme: own}
    numbers = reason.site.shape[0] * reason.site.shape[1]
    rows = [
        [
            decision.scheme.name,
            f"{8 * decision.uses['bytes'] / numbers:.2f}",
            f"{decision.uses['bytes']:.0f}",
            f"{decision.uses['kl']:.3e}",
            f"{explanation.price.charge(decision.uses):.4e}",
            "chosen" if decision.scheme == own.scheme else "",
        ]
        for decision in sorted(menu.values(), key=lambda d: explanation.price.charge(d.uses))
    ]
    console.print_table(MOVES, rows)
    console.note(f"{reason.site.name} [{reason.site.shape[0]} x {reason.site.shape[1]}]: {reason.verdict}")
    for label, move in (("next up", reason.neighbours.up), ("next down", reason.neighbours.down)):
        if move is not None:
            console.note(f"{label}: {_move(move)}")


def _move(move: Move) -> str:
    return f"{move.part}: {move.change['bytes']:+.0f} bytes, {move.change['kl']:+.3e} nats, {move.value:.3e} per byte"
