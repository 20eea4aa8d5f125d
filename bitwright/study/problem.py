"""What a strategy is given: prices of schemes, a budget, and the exact size of a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitwright.allocation import Budgets, Decision
from bitwright.errors import InfeasibleError, UsageError
from bitwright.passes.allocate.choices import Latencies
from bitwright.plan import Plan
from bitwright.plans.costs import Costs
from bitwright.plans.diff import total
from bitwright.runs import Scheme
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site
from bitwright.study.restricted import FLOAT_CACHE_BITS

Schemes = Mapping[str, Scheme]


@dataclass(frozen=True)
class Problem:
    """A budget for a profiled model.

    Attributes:
        costs: of every scheme of every site, of the metric that the strategy asks for.
        budgets: has ``max_bytes``; caches count when it has a ``context``.
        size: called with a scheme for every site, the bytes that count against ``max_bytes``, exactly.
        latencies: of the target; None: unknown.
    """

    costs: Costs
    budgets: Budgets
    size: Callable[[Schemes], int]
    latencies: Latencies | None = None

    def __post_init__(self) -> None:
        if self.budgets.max_bytes is None:
            raise UsageError("a study compares plans of equal bytes", remedy="pass --max-bytes")

    @property
    def max_bytes(self) -> int:
        assert self.budgets.max_bytes is not None
        return self.budgets.max_bytes

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.costs.profile.header.sites

    def menu(self, site: str) -> tuple[Decision, ...]:
        """What strategies choose from that give weights different widths and nothing else.

        Activations have 8 bits (but those of float weights), caches 16.
        """
        return tuple(decision for decision in self.costs.menu(site) if _plain(decision.scheme))

    def menus(self) -> dict[str, tuple[Decision, ...]]:
        """By site, in the model's order."""
        return {site.name: self.menu(site.name) for site in self.sites}

    def fits(self, schemes: Schemes) -> bool:
        return self.size(schemes) <= self.max_bytes

    def check_possible(self, menus: Mapping[str, Sequence[Decision]]) -> None:
        """Raises InfeasibleError: the smallest of everything is too large."""
        smallest = self.size({site: menu[0].scheme for site, menu in menus.items()})
        if smallest > self.max_bytes:
            raise self.infeasible(smallest)

    def infeasible(self, smallest: int) -> InfeasibleError:
        return InfeasibleError(
            f"no choice fits into {self.max_bytes} bytes",
            where="--max-bytes",
            limit=f"the smallest that this strategy can choose takes {smallest} bytes",
            remedy=f"allow {smallest} bytes or more",
        )

    def plan(self, schemes: Schemes, strategy: str) -> Plan:
        """A plan whose notes say who made it, for which budget, and what is predicted."""
        header = self.costs.profile.header
        predicted = {"kl": total(self.costs.of(site, scheme) for site, scheme in schemes.items())["kl"]}
        if self.latencies is not None:
            predicted["decode_ms"] = self.latencies.step(schemes)
        notes = {
            "strategy": strategy,
            "metric": header.metric,
            "budgets": self.budgets.to_json(),
            "bytes": self.size(schemes),
            "predicted": predicted,
            "profile": self.costs.profile.digest,
        }
        return Plan({site.name: schemes[site.name] for site in self.sites}, header.digest, header.target, notes)


def _plain(scheme: Scheme) -> bool:
    if isinstance(scheme, CacheScheme):
        return scheme.bits == FLOAT_CACHE_BITS
    assert isinstance(scheme, LinearScheme)
    return scheme.weight.is_float or scheme.activation.bits == 8
