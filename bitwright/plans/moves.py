"""The neighbours of a decision: schemes one could exchange it for, and what a byte more or less would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.allocation import Decision, Resource
from bitwright.plans.costs import Costs
from bitwright.plans.price import Price
from bitwright.runs import Run, Scheme, runs_of, scheme_of
from bitwright.scheme import CacheScheme


@dataclass(frozen=True)
class Move:
    """A change of one site, or of one run of its rows.

    Attributes:
        scheme: the site's scheme after it.
        part: what changes, such as ``u4g32a8 -> u5g32a8``, with the rows if it is a run.
        change: resource name to how much more is used, whole site.
        value: nats per token and byte. Of a larger scheme: what each byte more would save. Of a smaller one: what each
            byte less would cost. Times are counted at the price.
    """

    scheme: Scheme
    part: str
    change: Mapping[Resource, float]
    value: float

    def to_json(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme.name,
            "part": self.part,
            "change": dict(self.change),
            "nats_per_byte": self.value,
        }


@dataclass(frozen=True)
class Neighbours:
    """The best moves of a decision; None where there is none.

    Attributes:
        up: larger, most saved per byte. down: smaller, least cost per byte.
        free: neither larger nor, at the price, worse: the decision is not the best of its bytes.
    """

    up: Move | None
    down: Move | None
    free: Move | None


def neighbours(decision: Decision, costs: Costs, price: Price) -> Neighbours:
    """The best moves of a site that has ``decision``."""
    moves = list(_moves(decision, costs, price))
    up = [move for move in moves if move.change["bytes"] > 0 and move.value > 0]
    down = [move for move in moves if move.change["bytes"] < 0 and move.value >= 0]
    free = [move for move in moves if move.change["bytes"] <= 0 and price.beside_bytes(move.change) < 0]
    return Neighbours(
        max(up, key=lambda move: move.value, default=None),
        min(down, key=lambda move: move.value, default=None),
        min(free, key=lambda move: price.charge(move.change), default=None),
    )


def _moves(decision: Decision, costs: Costs, price: Price) -> Iterator[Move]:
    for scheme, part in _others(decision, costs):
        new = costs.of(decision.site, scheme)
        change = {resource: new.uses[resource] - amount for resource, amount in decision.uses.items()}
        size = change["bytes"]
        yield Move(scheme, part, change, -price.beside_bytes(change) / size if size else 0.0)


def _others(decision: Decision, costs: Costs) -> Iterator[tuple[Scheme, str]]:
    """Every other scheme of the whole site, or of one of its runs when it is cut into several."""
    scheme = decision.scheme
    if isinstance(scheme, CacheScheme):
        for other in costs.menu(decision.site):
            if other.scheme != scheme:
                yield other.scheme, f"{scheme} -> {other.scheme}"
        return
    runs = runs_of(scheme, costs.profile.header.site(decision.site).shape[0])
    for position, run in enumerate(runs):
        for linear in costs.linear_schemes(decision.site):
            if linear == run.scheme or not costs.alike(run.scheme, linear):
                continue
            where = f"{run.rows} rows: " if len(runs) > 1 else ""
            changed = (*runs[:position], Run(linear, run.rows), *runs[position + 1 :])
            yield scheme_of(changed), f"{where}{run.scheme} -> {linear}"
