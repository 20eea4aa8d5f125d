"""Why each site of a plan got its bits: what its last bytes bring, against what bytes are worth elsewhere.

Under a budget of bytes an optimal plan has one price, in nats per token and byte: every step to a larger scheme that it
took saves more per byte than the price, every one that it did not take saves less. The same holds with time, whose
price is counted into a step's saving.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from bitwright.allocation import Decision
from bitwright.plan import Plan
from bitwright.plans.costs import Costs
from bitwright.plans.moves import Neighbours, neighbours
from bitwright.plans.price import Price, stated_price
from bitwright.site import Site

SLACK = 1e-9
"""Relative: values nearer than this are equal. They come from sums of floats."""


@dataclass(frozen=True)
class Reason:
    """A site's decision beside its neighbours."""

    site: Site
    decision: Decision
    neighbours: Neighbours
    price: float

    @property
    def bits(self) -> float:
        """Stored bits per weight; of a cache, per cached number (0 when caches do not count)."""
        return 8 * self.decision.uses["bytes"] / (self.site.parameters or self.site.shape[0] * self.site.shape[1])

    @property
    def verdict(self) -> str:
        """One sentence."""
        up, down, free = self.neighbours.up, self.neighbours.down, self.neighbours.free
        if free is not None:
            return f"not the best of its bytes: {free.part} is no larger and loses less"
        if up is not None and up.value > self.price * (1 + SLACK):
            return f"worth more bits than it has: {up.part} saves {up.value:.2e} a byte, the price is {self.price:.2e}"
        if down is not None and down.value < self.price * (1 - SLACK):
            return f"has more bits than it is worth: {down.part} costs {down.value:.2e} a byte, less than the price"
        if up is None and down is None:
            return "there is nothing else to choose"
        if up is None:
            return "nothing larger loses less"
        if down is None:
            return "nothing is smaller"
        return "its bytes are worth their price, more would not be"

    def to_json(self) -> dict[str, Any]:
        found = self.neighbours
        return {
            "site": self.site.name,
            "scheme": self.decision.scheme.name,
            "bits": self.bits,
            "uses": dict(self.decision.uses),
            "up": found.up and found.up.to_json(),
            "down": found.down and found.down.to_json(),
            "free": found.free and found.free.to_json(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Explanation:
    """All sites, in the model's order.

    Attributes:
        price: of the plan's notes if ``stated``, else read off its sites (``implied_price``).
    """

    reasons: tuple[Reason, ...]
    price: Price
    stated: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "price": {"stated": self.stated, **self.price.charges},
            "sites": [reason.to_json() for reason in self.reasons],
        }


def explain(plan: Plan, costs: Costs) -> Explanation:
    """Explain every site.

    Raises:
        InputError: the plan is for other sites than the profile, or has a scheme that was not profiled.
    """
    decisions = costs.plan(plan)
    stated = stated_price(plan.notes)
    price = stated if stated is not None else implied_price(decisions, costs)
    reasons = [
        Reason(costs.profile.header.site(name), decision, neighbours(decision, costs, price), price.byte)
        for name, decision in decisions.items()
    ]
    return Explanation(tuple(reasons), price, stated is not None)


def implied_price(decisions: dict[str, Decision], costs: Costs) -> Price:
    """The price of a byte that blames a plan's sites least, for a plan that states none.

    A site is blamed by what its next step up saves above the price, and by what its step down costs below it. The sum
    is least between the two middle ones of all these values; an optimal plan is not blamed at all there.
    """
    free = Price({})
    found = [neighbours(decision, costs, free) for decision in decisions.values()]
    values = sorted(move.value for near in found for move in (near.up, near.down) if move is not None)
    return Price({"bytes": median(values) if values else 0.0})
