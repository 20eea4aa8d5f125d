"""What every cache scheme of a profile costs: in all layers together, and where most."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from bitwright.scheme import CacheScheme
from bitwright.sensitivity import Profile


@dataclass(frozen=True)
class CacheCost:
    """One scheme in all caches of its kind.

    Attributes:
        scheme: its name.
        bits: bytes of a token, scales and zero points included, over its numbers, in bits.
        losses: by site, in the profile's unit.
    """

    scheme: str
    bits: float
    losses: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.losses.values())

    @property
    def worst(self) -> str:
        """The site that loses most."""
        return max(self.losses, key=lambda site: self.losses[site])

    def to_json(self) -> dict[str, Any]:
        return {"bits": self.bits, "loss": self.total, "sites": self.losses}


def cache_costs(profile: Profile) -> tuple[CacheCost, ...]:
    """One per profiled packed scheme, keys first, the narrowest first."""
    losses: dict[CacheScheme, dict[str, float]] = defaultdict(dict)
    size: dict[CacheScheme, int] = defaultdict(int)
    numbers: dict[CacheScheme, int] = defaultdict(int)
    for site in profile.header.sites:
        if site.kind not in ("k_cache", "v_cache"):
            continue
        for name, loss in profile.scores(site.name).caches.items():
            scheme = CacheScheme.parse(name)
            if not scheme.is_float:
                losses[scheme][site.name] = loss
                size[scheme] += scheme.bytes_per_token(*site.shape)
                numbers[scheme] += site.shape[0] * site.shape[1]
    return tuple(CacheCost(s.name, 8 * size[s] / numbers[s], losses[s]) for s in sorted(losses))
