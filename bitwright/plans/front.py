"""The Pareto front of a profile: the least divergence at every amount of bytes, or of time.

Each site's schemes are reduced to their lower convex hull; steps along all hulls, taken in the order of what they save
per unit, pass through every plan that is optimal at some price (Everett 1963). Between two of these plans nothing is
better than the straight line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bitwright.allocation import Decision, Resource
from bitwright.plans.diff import total


@dataclass(frozen=True)
class Step:
    """A site goes to the next scheme of its hull. ``value``: nats that each unit of the resource more saves."""

    before: Decision
    after: Decision
    value: float


def hull(menu: Sequence[Decision], resource: Resource) -> tuple[Decision, ...]:
    """The lower convex hull of a site's decisions over ``resource``: from the smallest to the least divergence."""
    found: list[Decision] = []
    for decision in sorted(menu, key=lambda d: (d.uses[resource], d.uses["kl"], d.scheme.name)):
        if found and decision.uses["kl"] >= found[-1].uses["kl"]:
            continue
        while len(found) > 1 and _value(found[-1], decision, resource) >= _value(found[-2], found[-1], resource):
            found.pop()
        found.append(decision)
    return tuple(found)


def steps(hulls: Mapping[str, Sequence[Decision]], resource: Resource) -> list[Step]:
    """All steps along the hulls, the one that saves most per unit first; those of a site in their order."""
    found = [
        Step(low, high, _value(low, high, resource))
        for decisions in hulls.values()
        for low, high in pairwise(decisions)
    ]
    return sorted(found, key=lambda step: -step.value)


def front(menus: Mapping[str, Sequence[Decision]], resource: Resource) -> Iterator[dict[Resource, float]]:
    """What the plans of the front use, from the smallest to the one of least divergence."""
    hulls = {site: hull(menu, resource) for site, menu in menus.items()}
    uses = total(decisions[0] for decisions in hulls.values())
    yield dict(uses)
    for step in steps(hulls, resource):
        for name, amount in step.after.uses.items():
            uses[name] += amount - step.before.uses[name]
        yield dict(uses)


def _value(low: Decision, high: Decision, resource: Resource) -> float:
    gained, spent = low.uses["kl"] - high.uses["kl"], high.uses[resource] - low.uses[resource]
    return gained / spent if spent else float("inf")
