"""Score every site of a model: what each scheme's error costs, from inputs and gradients of the float model.

Sites are taken in the graph's order, as many at a time as their inputs and gradients fit the memory that is allowed;
for each such batch the float model runs over the calibration windows once, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.simulation import cache_of
from bitwright.cachemaps import CacheMaps
from bitwright.options import QuantizerName
from bitwright.scheme import LinearScheme, WeightScheme
from bitwright.sensitivity import Profile, SiteScores
from bitwright.site import Site
from bitwright.target import Target

if TYPE_CHECKING:
    from bitwright.frontend.calibrate.gradients import Observed
    from bitwright.frontend.calibrate.points import Points
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids, Moments
    from bitwright.passes.quantizers.matrix import QuantizedMatrix
    from bitwright.passes.sensitivity.metric import Evidence, Metric
    from bitwright.program import Program

Floats = npt.NDArray[np.float32]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Scoring:
    """One profile at work; ``apart``: so many of the windows say nothing of the order of tokens."""

    imported: ImportedModel
    program: Program
    interpreter: Interpreter
    windows: Ids
    apart: int
    moments: Moments | None
    options: ProfileOptions
    metric: Metric
    profile: Profile
    maps: CacheMaps
    tell: Tell
    progress: Callable[[int, int], None] | None

    def all_sites(self, executor: Executor) -> None:
        from bitwright.frontend.calibrate.gradients import observe
        from bitwright.frontend.calibrate.points import Points

        points = Points.of(self.imported.graph)
        sites = self.program.sites
        done = sum(self.profile.has(site.name) for site in sites)
        self._advance(done)
        for batch in self._batches(points):
            self.tell(f"run the model for {batch[0].name} to {batch[-1].name}")
            wanted = [site for site in batch if self.options.weights or not site.weight]
            values, gradients = _watched(wanted, points)
            windows = self._read_for(batch[0], points)
            with self.interpreter.caches(dict.fromkeys((keys for keys, _ in points.caches), self.options.recent)):
                observed = observe(self.interpreter, windows, values, gradients, seed=self.options.seed)
            for site in batch:
                self.tell(f"score {site.name}")
                self.profile.put(self._scores(site, points, observed, executor))
                done += 1
                self._advance(done)

    def _advance(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.program.sites))

    def _batches(self, points: Points) -> Iterator[list[Site]]:
        """Sites without scores, in order of the network, as many as fit the memory together (at least one)."""
        batch: list[Site] = []
        used = 0
        for site in _by_layer(self.program.sites):
            if self.profile.has(site.name):
                continue
            if batch and len(self._read_for(site, points)) != len(self._read_for(batch[0], points)):
                yield batch
                batch, used = [], 0
            size = 4 * self.windows.size * (site.shape[0] * (2 if not site.weight else 1) + site.shape[1])
            size = 4 * self.windows.size * site.shape[1] if _gives_logits(site, points) else size
            size = size if self.options.weights or not site.weight else 0
            if batch and used + size > self.options.memory:
                yield batch
                batch, used = [], 0
            batch.append(site)
            used += size
        if batch:
            yield batch

    def _read_for(self, site: Site, points: Points) -> Ids:
        """The windows that score a site: rows of tokens only by those that had no part in their order."""
        if points.rank is None or not _has_row_per_token(site, points):
            return self.windows
        return self.windows[: self.apart]

    def _scores(self, site: Site, points: Points, observed: Observed, executor: Executor) -> SiteScores:
        from bitwright.codegen.isa import select_isa
        from bitwright.passes.legality import reason
        from bitwright.passes.sensitivity.scores import LookUps, cache_scores, matrix_scores

        isa = select_isa(Target.parse(self.options.target).features)
        if not site.weight:
            name = cache_of(site, points)
            letter = site.kind[0]
            caches = [s for s in self.options.caches if s.tensor == letter and reason(site, s, isa) is None]
            held, felt = observed.values[name], observed.gradients[name]
            return cache_scores(site, held, felt, caches, self.maps.of(site.name), self.windows.shape[1])
        if not self.options.weights:
            return SiteScores(site.name)
        weights = np.ascontiguousarray(self.program.parameters[site.weight].load(), dtype=np.float32)
        more = self.options.table_weights if _has_row_per_token(site, points) else ()
        candidates = (*self.options.weights, *more)
        schemes = [scheme for scheme in candidates if reason(site, LinearScheme(scheme), isa) is None]
        look_ups = None
        if site.weight in points.look_ups and points.look_ups[site.weight] in observed.gradients:
            gradient = observed.gradients[points.look_ups[site.weight]]
            frequency = np.full(len(weights), 1 / len(weights))
            if site.weight in points.tokens:
                frequency = self._by_row(observed.frequency, points)
            look_ups = LookUps(frequency, np.mean(np.square(gradient), axis=0, dtype=np.float64))
        evidence = self._evidence(site, weights, points, observed)
        quantizer = site_quantizer(site, weights, self.moments, self.options.quantizer, self.options.codes)
        return matrix_scores(site, weights, schemes, quantizer, self.metric, evidence, look_ups, executor)

    def _by_row(self, of_tokens: npt.NDArray[np.float64], points: Points) -> npt.NDArray[np.float64]:
        """Numbers of tokens in the order of the table's rows."""
        if points.rank is None:
            return of_tokens
        result = np.empty_like(of_tokens)
        result[self.interpreter.weights[points.rank].numpy()] = of_tokens
        return result

    def _evidence(self, site: Site, weights: Floats, points: Points, observed: Observed) -> Evidence | None:
        from bitwright.passes.sensitivity.metric import Evidence

        product = points.products.get(site.weight)
        if product is None:
            return None
        inputs = observed.values[product.activation]

        def of_logits(rows: slice) -> Floats:
            # The label is known in distribution: E[(1 - p)^2 | label] and the rest sum to p (1 - p).
            p = np.exp(inputs @ weights[rows].T - observed.log_sums[:, None])
            result: Floats = np.sqrt(np.clip(p * (1 - p), 0, None))
            return result

        def of_outputs(rows: slice) -> Floats:
            return observed.gradients[product.output][:, rows]

        def divergence(error: Floats) -> float:
            from bitwright.budgets.simulation import divergence_of_error

            return divergence_of_error(self.interpreter, self._read_for(site, points), site.weight, error)

        return Evidence(inputs, of_logits if _gives_logits(site, points) else of_outputs, divergence)


def _gives_logits(site: Site, points: Points) -> bool:
    """Does the site compute the logits, so that gradients there need no backward pass (and would not fit)?"""
    return site.tied or (site.name.startswith("head") and site.weight in points.products)


def _has_row_per_token(site: Site, points: Points) -> bool:
    return site.weight in points.tokens or _gives_logits(site, points)


def _watched(batch: list[Site], points: Points) -> tuple[set[str], set[str]]:
    """Names whose values, and whose gradients, a batch needs."""
    values: set[str] = set()
    gradients: set[str] = set()
    for site in batch:
        if not site.weight:
            name = cache_of(site, points)
            values.add(name)
            gradients.add(name)
            continue
        product = points.products.get(site.weight)
        if product is not None:
            values.add(product.activation)
            if not _gives_logits(site, points):
                gradients.add(product.output)
        if site.kind == "table" and site.weight in points.look_ups:
            gradients.add(points.look_ups[site.weight])
    return values, gradients


def _by_layer(sites: tuple[Site, ...]) -> list[Site]:
    """Caches behind the matrices of their layer, so that a batch reaches back as little as possible."""

    def layer(site: Site) -> int:
        parts = site.name.split(".")
        return int(parts[1]) if parts[0] == "layer" else -1

    return sorted(sites, key=layer)


def site_quantizer(
    site: Site, weights: Floats, moments: Moments | None, method: QuantizerName, codes: Path | None
) -> Callable[[WeightScheme], QuantizedMatrix]:
    """Quantizes the site's matrix to a scheme, or finds its codes in the folder ``codes``."""
    from bitwright.passes.quantizers.kept import KeptCodes
    from bitwright.passes.quantizers.methods import quantize

    moment = None if moments is None or method == "rtn" else moments.of(site.weight)

    def compute(scheme: WeightScheme) -> QuantizedMatrix:
        return quantize(method, weights, scheme, moment)

    if codes is None:
        return compute
    kept = KeptCodes(codes)
    return lambda scheme: kept.get(site.name, scheme, lambda: compute(scheme))
