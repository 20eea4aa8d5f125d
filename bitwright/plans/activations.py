"""Which sites lose most when their inputs are read as 8-bit integers: where 16 bits would help, if anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.sensitivity import A16_SHARE, Profile

MASSIVE = 1000.0
"""Largest over median magnitude from which activations are called massive (Sun et al., Massive Activations in Large
Language Models, 2024, section 2)."""


@dataclass(frozen=True)
class ActivationLoss:
    """One site's loss by the width of its input.

    Attributes:
        eight: nats per token with int8 activations, by their groups (``a8g32``, ``a8row``), the finest first.
        share: of all sites' losses with the finest groups.
        peak: largest magnitude of the input over the median one; None in profiles that do not hold it.
    """

    site: str
    eight: Mapping[str, float]
    share: float
    peak: float | None

    @property
    def finest(self) -> float:
        return next(iter(self.eight.values()))

    @property
    def sixteen(self) -> float:
        """Nats per token with 16-bit activations in the finest groups."""
        return self.finest * A16_SHARE

    @property
    def massive(self) -> bool:
        return self.peak is not None and self.peak >= MASSIVE

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "a8": dict(self.eight),
            "a16": self.sixteen,
            "share": self.share,
            "peak": self.peak,
            "massive": self.massive,
        }


def activation_losses(profile: Profile) -> tuple[ActivationLoss, ...]:
    """Every site with a product, the one that loses most first."""
    losses: dict[str, dict[str, float]] = {}
    peaks: dict[str, float | None] = {}
    for site in profile.header.sites:
        scores = profile.scores(site.name)
        if scores.activations:
            ordered = sorted(scores.activations, key=_group)
            losses[site.name] = {name: float(scores.activations[name].sum()) for name in ordered}
            peaks[site.name] = scores.peak
    total = sum(next(iter(found.values())) for found in losses.values()) or 1.0
    found = [ActivationLoss(n, by, next(iter(by.values())) / total, peaks[n]) for n, by in losses.items()]
    return tuple(sorted(found, key=lambda loss: -loss.finest))


def _group(name: str) -> float:
    """``a8g32`` to 32; a whole row is the coarsest."""
    return float("inf") if name == "a8row" else float(name.removeprefix("a8g"))
