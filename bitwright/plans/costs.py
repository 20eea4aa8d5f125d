"""What a scheme of a site uses, from a profile: divergence, bytes, and milliseconds where latencies are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bitwright.allocation import Decision, Resource
from bitwright.codegen.layout import packed_layout
from bitwright.errors import InputError
from bitwright.plan import Plan
from bitwright.runs import ROW_MULTIPLE, Scheme, runs_of
from bitwright.scheme import ActivationScheme, CacheScheme, LinearScheme, WeightScheme
from bitwright.sensitivity import Profile, SiteScores
from bitwright.site import Site

Latencies = Callable[[Site, Scheme], dict[Resource, float]]
"""Milliseconds of a site with a scheme, whole site: ``decode_ms`` and, if known, ``prefill_ms``."""


@dataclass(frozen=True)
class Costs:
    """Prices schemes of a profile's sites.

    Attributes:
        context: cached tokens that count as bytes; None: caches store nothing.
        latencies: None: time is not known.
        activations: bits that inputs may be read with in menus. More of them cost time and no bytes: where time is not
            known they would look free.
    """

    profile: Profile
    context: int | None = None
    latencies: Latencies | None = None
    activations: tuple[int, ...] = (8, 16)
    _scores: dict[str, SiteScores] = field(default_factory=dict, repr=False, compare=False)

    def of(self, site: str, scheme: Scheme) -> Decision:
        """Raises InputError: the scheme was not profiled."""
        found = self.profile.header.site(site)
        loss, size = self._cache(found, scheme) if isinstance(scheme, CacheScheme) else self._matrix(found, scheme)
        uses: dict[Resource, float] = {"kl": loss, "bytes": size}
        return Decision(site, scheme, uses | (self.latencies(found, scheme) if self.latencies else {}))

    def plan(self, plan: Plan) -> dict[str, Decision]:
        """Every site of a plan.

        Raises:
            InputError: the plan is for other sites, or has a scheme that was not profiled.
        """
        plan.check_sites(self.profile.header.sites)
        return {site: self.of(site, scheme) for site, scheme in plan.schemes.items()}

    def alike(self, scheme: LinearScheme, other: LinearScheme) -> bool:
        """May one be compared with the other: do their activations cost the same, or is it known what they cost?"""
        same = scheme.activation == other.activation or scheme.weight.is_float or other.weight.is_float
        return same or self.latencies is not None

    def menu(self, site: str) -> tuple[Decision, ...]:
        """Every scheme that was profiled for the whole site, the smallest first."""
        scores = self._site(site)
        caches: list[Scheme] = [CacheScheme.parse(name) for name in scores.caches]
        found = sorted((self.of(site, scheme) for scheme in [*caches, *self.linear_schemes(site)]), key=_order)
        return tuple(found)

    def linear_schemes(self, site: str) -> list[LinearScheme]:
        """Schemes of weights and activation that were profiled for a matrix."""
        scores = self._site(site)
        schemes = []
        for weight in map(WeightScheme.parse, scores.weights):
            widths = (16,) if weight.is_float or not scores.activations else self.activations
            schemes += [LinearScheme(weight, ActivationScheme(bits)) for bits in widths]  # type: ignore[arg-type]
        return schemes

    def _site(self, site: str) -> SiteScores:
        if site not in self._scores:
            self._scores[site] = self.profile.scores(site)
        return self._scores[site]

    def _matrix(self, site: Site, scheme: Scheme) -> tuple[float, int]:
        assert not isinstance(scheme, CacheScheme)
        scores, lanes = self._site(site.name), self.profile.header.lanes
        loss, size, row = 0.0, 0, 0
        for run in runs_of(scheme, site.shape[0]):
            tiles = slice(row // ROW_MULTIPLE, -(-(row + run.rows) // ROW_MULTIPLE))
            loss += float(scores.linear(run.scheme)[tiles].sum())
            size += packed_layout(run.rows, site.shape[1], run.scheme.weight, lanes).storage_bytes
            row += run.rows
        return loss, size

    def _cache(self, site: Site, scheme: CacheScheme) -> tuple[float, int]:
        losses = self._site(site.name).caches
        if scheme.name not in losses:
            raise InputError(
                f"{scheme} was not profiled",
                where=f"site {site.name}",
                limit=f"profiled: {', '.join(losses)}",
                remedy="profile again with --schemes",
            )
        maps = self.profile.header.map_bytes(site.name, scheme)
        stored = scheme.bytes_at(*site.shape, self.context or 0) + maps
        return losses[scheme.name], stored


def _order(decision: Decision) -> tuple[float, float, str]:
    return decision.uses["bytes"], decision.uses["kl"], decision.scheme.name
