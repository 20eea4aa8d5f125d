"""What differs between two plans: sites that changed alike are shown together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.allocation import Decision, Resource
from bitwright.errors import InputError
from bitwright.plan import Plan
from bitwright.plans.costs import Costs
from bitwright.plans.place import Place, together

Uses = Mapping[Resource, float]


@dataclass(frozen=True)
class Change:
    """Sites of one role that went from one scheme to another.

    Attributes:
        before, after: names of schemes.
        uses: what ``after`` uses more than ``before``, all sites together; empty without a profile.
    """

    sites: tuple[str, ...]
    before: str
    after: str
    uses: Uses

    @property
    def where(self) -> str:
        return together(self.sites)

    def to_json(self) -> dict[str, Any]:
        return {"sites": list(self.sites), "before": self.before, "after": self.after, "change": dict(self.uses)}


@dataclass(frozen=True)
class Difference:
    """All changes; ``before`` and ``after``: what the plans use in all, empty without a profile.

    ``same``: sites with equal schemes. ``notes``: budgets and predictions that the two plans state of themselves.
    """

    changes: tuple[Change, ...]
    same: int
    before: Uses
    after: Uses
    notes: tuple[Mapping[str, Any], Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "changes": [change.to_json() for change in self.changes],
            "same": self.same,
            "totals": {"before": dict(self.before), "after": dict(self.after)},
            "notes": {"before": dict(self.notes[0]), "after": dict(self.notes[1])},
        }


def difference(before: Plan, after: Plan, costs: Costs | None = None) -> Difference:
    """Compare two plans of the same sites.

    Args:
        costs: from a profile of the model; None: bytes, losses and times are not told.

    Raises:
        InputError: the plans are for different models, or have schemes that were not profiled.
    """
    _same_model(before, after)
    priced = None if costs is None else (costs.plan(before), costs.plan(after))
    groups: dict[tuple[str, str, str], list[str]] = {}
    for site, scheme in before.schemes.items():
        other = after.schemes[site]
        if scheme != other:
            groups.setdefault((Place.of(site).role, scheme.name, other.name), []).append(site)
    changes = [
        Change(tuple(sites), old, new, {} if priced is None else _change(sites, *priced))
        for (_, old, new), sites in groups.items()
    ]
    totals = ({}, {}) if priced is None else (total(priced[0].values()), total(priced[1].values()))
    same = len(before.schemes) - sum(len(change.sites) for change in changes)
    return Difference(tuple(changes), same, *totals, (before.notes, after.notes))


def _same_model(before: Plan, after: Plan) -> None:
    if before.model and after.model and before.model != after.model:
        raise InputError(
            "the plans were made for different models",
            where=f"{before.model[:16]} and {after.model[:16]}",
            remedy="compare plans of one model, or clear the model field of one if you are sure",
        )
    only = [site for site in before.schemes if site not in after.schemes]
    only += [site for site in after.schemes if site not in before.schemes]
    if only:
        raise InputError(
            f"{len(only)} sites are in one of the plans only", where=", ".join(only[:5]), remedy="complete the plan"
        )


def _change(sites: list[str], before: Mapping[str, Decision], after: Mapping[str, Decision]) -> Uses:
    old, new = total(before[site] for site in sites), total(after[site] for site in sites)
    return {resource: new[resource] - old[resource] for resource in new}


def total(decisions: Any) -> dict[Resource, float]:
    """Sums over decisions, resource by resource."""
    sums: dict[Resource, float] = {}
    for decision in decisions:
        for resource, amount in decision.uses.items():
            sums[resource] = sums.get(resource, 0.0) + amount
    return sums
