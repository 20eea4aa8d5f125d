"""The price of a budget: how many nats per token one more byte or millisecond was worth to whoever made the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.allocation import RESOURCES, Resource


@dataclass(frozen=True)
class Price:
    """Nats per token that a unit of a resource costs, besides divergence itself, which costs 1 a nat.

    A site's scheme is right at these prices when no other has a smaller sum of divergence and charges: the optimum of
    the Lagrangian, in which every site decides for itself.
    """

    charges: Mapping[Resource, float]

    @property
    def byte(self) -> float:
        return self.charges.get("bytes", 0.0)

    def charge(self, uses: Mapping[Resource, float]) -> float:
        """Divergence and all that is charged for, nats per token."""
        return uses["kl"] + sum(price * uses.get(resource, 0.0) for resource, price in self.charges.items())

    def beside_bytes(self, uses: Mapping[Resource, float]) -> float:
        """The same without bytes: what a byte is weighed against."""
        return self.charge(uses) - self.byte * uses["bytes"]


def stated_price(notes: Mapping[str, Any]) -> Price | None:
    """The price that a plan's notes state, None if they do not, or if divergence was worth nothing to it.

    ``prices`` are in units of the ``objective`` per unit of resource; divided by what a nat is worth there they are in
    nats.
    """
    prices, objective = notes.get("prices"), notes.get("objective")
    if not isinstance(prices, Mapping) or objective not in RESOURCES:
        return None
    worth: dict[Resource, float] = {r: float(prices.get(r, 0.0)) for r in RESOURCES} | {objective: 1.0}
    nat = worth.pop("kl")
    return Price({resource: value / nat for resource, value in worth.items() if value}) if nat > 0 else None
