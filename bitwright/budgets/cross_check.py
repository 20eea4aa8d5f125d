"""Are the scores true? Quantize one site at a time, measure the model's divergence, and compare with the score."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bitwright.budgets.correction import Measurer
from bitwright.runs import Scheme
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.sensitivity import Profile


@dataclass(frozen=True)
class Check:
    """One site in one scheme: the score, and the divergence of the model in which it alone is quantized."""

    site: str
    scheme: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class CrossCheck:
    """Checks, the rank correlation between scores and measurements, and the geometric mean of their ratio."""

    checks: tuple[Check, ...]

    @property
    def rank_correlation(self) -> float:
        """Spearman's; 1 for fewer than two checks."""
        from scipy.stats import spearmanr

        if len(self.checks) < 2:
            return 1.0
        return float(spearmanr([c.predicted for c in self.checks], [c.measured for c in self.checks]).statistic)

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        pairs = [(c.measured, c.predicted) for c in self.checks if c.measured > 0 and c.predicted > 0]
        return float(np.exp(np.mean([np.log(m / p) for m, p in pairs]))) if pairs else 1.0

    def write(self, path: Path) -> None:
        document = {"rank_correlation": self.rank_correlation, "ratio": self.ratio}
        checks = [asdict(check) for check in self.checks]
        path.write_text(json.dumps({**document, "checks": checks}, indent=1) + "\n", encoding="utf-8")


def cross_check(
    profile: Profile, count: int, measurer: Measurer, progress: Callable[[int, int], None] | None = None
) -> CrossCheck:
    """Measure ``count`` (site, scheme) pairs drawn from the profile; equal profiles give equal pairs.

    Weights are read by 16-bit activations, whose own loss is no part of the score.
    """
    random = np.random.default_rng(profile.header.seed)
    pairs: list[tuple[str, Scheme, float]] = []
    for site in profile.header.sites:
        scores = profile.scores(site.name)
        for name, losses in scores.weights.items():
            if not LinearScheme.parse(name).weight.is_float:
                pairs.append((site.name, LinearScheme.parse(f"{name}a16"), float(losses.sum())))
        pairs += [
            (site.name, CacheScheme.parse(n), loss) for n, loss in scores.caches.items() if n[1:] not in ("16", "32")
        ]
    chosen = sorted(random.choice(len(pairs), min(count, len(pairs)), replace=False).tolist())
    found = []
    for done, index in enumerate(chosen, start=1):
        name, scheme, predicted = pairs[index]
        found.append(Check(name, str(scheme), predicted, measurer.fitted.divergence({name: scheme})))
        if progress is not None:
            progress(done, len(chosen))
    return CrossCheck(tuple(found))
