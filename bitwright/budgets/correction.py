"""Correct what the scores got wrong: measure the plan, find each site's real part of the divergence, and solve again.

Additivity fails at low widths: errors of different sites add up or cancel. A round measures the plan's divergence on
held-out text, takes every site's part on the quantized model (``contributions.py``), multiplies the site's
scores by what was found over what was predicted, and solves again within the same budgets. A plan is taken only if its
measured divergence is lower; when it is not, half the correction is tried, and then the search ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.allocation import Allocation, Budgets
from bitwright.budgets.allocating import Settings, allocate
from bitwright.errors import InputError
from bitwright.runs import Scheme
from bitwright.scheme import WeightScheme
from bitwright.sensitivity import Profile

if TYPE_CHECKING:
    from bitwright.budgets.simulation import Simulation
    from bitwright.compiling.transforming import Transformed
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids
    from bitwright.site import Site

Tell = Callable[[str], None]
Floats = npt.NDArray[np.float32]

HELD_OUT = 4
"""Windows at the end of the calibration text that plans are measured on; gradients never saw them."""

LEAST, MOST = 0.25, 4.0
"""Bounds of a correction: a part that is nearly nothing, or negative, says little about other schemes of its site."""


@dataclass(frozen=True)
class Measurer:
    """Runs the model of a profile: ``model``, or the one that still lies where it was profiled."""

    profile: Profile
    tell: Tell
    model: ImportedModel | None = None

    @cached_property
    def held_out(self) -> Simulation:
        """On windows that nothing is fitted to."""
        return self.simulation(self._windows[-HELD_OUT:])

    @cached_property
    def fitted(self) -> Simulation:
        """On windows that corrections are fitted to."""
        return replace(self.held_out, windows=self._windows[-3 * HELD_OUT : -HELD_OUT : 2], _reference=[])

    @cached_property
    def _windows(self) -> Ids:
        return np.load(self.profile.folder / "windows.npy")  # type: ignore[no-any-return]

    @cached_property
    def transformed(self) -> Transformed:
        """The profile's model as it was quantized, and its moments.

        Raises:
            InputError: the model is not what was profiled.
        """
        from bitwright import pipeline
        from bitwright.compiling.transforming import transformed
        from bitwright.frontend.calibrate.points import Points
        from bitwright.moments import Moments, MomentStore

        header = self.profile.header
        imported = pipeline.load_model(self.model or header.model, self.tell, None)
        if imported.digest != header.digest:
            raise InputError(
                "the model is not the one that was profiled", where=header.model, remedy="profile it again"
            )
        store = MomentStore(self.profile.folder / "calibration", header.moments)
        activations = {weight: product.activation for weight, product in Points.of(imported.graph).products.items()}
        moments = Moments(store, activations, header.tokens) if header.moments else None
        return transformed(
            imported, moments, equalise=bool(header.equalised), reorder=bool(header.reordered), rotate=header.rotated
        )

    def simulation(self, windows: Ids, skip: int = 0) -> Simulation:
        """The profile's model on any windows of token ids.

        Raises:
            InputError: the model is not what was profiled.
        """
        from bitwright import pipeline
        from bitwright.budgets.scoring import site_quantizer
        from bitwright.budgets.simulation import Simulation
        from bitwright.cachemaps import CacheMaps
        from bitwright.frontend.calibrate.points import Points
        from bitwright.frontend.interpreter import Interpreter
        from bitwright.options import Options

        header = self.profile.header
        imported, moments = self.transformed.model, self.transformed.moments
        program = pipeline.sites_of(imported, Options(), self.tell)

        def weights(site: Site) -> Floats:
            return np.ascontiguousarray(program.parameters[site.weight].load(), dtype=np.float32)

        def dequantized(site: Site, scheme: WeightScheme) -> Floats:
            matrix = weights(site)
            if scheme.is_float:
                return matrix.astype(np.float16).astype(np.float32) if scheme.bits == 16 else matrix
            self.tell(f"quantize {site.name} to {scheme}")
            codes = self.profile.folder / "codes"
            quantizer = site_quantizer(site, matrix, moments, header.quantizer, codes)  # type: ignore[arg-type]
            return quantizer(scheme).dequantize(scheme)

        points = Points.of(imported.graph)
        maps = CacheMaps.read(self.profile.folder)
        return Simulation(Interpreter(imported.graph), points, header.sites, windows, weights, dequantized, skip, maps)


def allocate_corrected(
    profile: Profile, budgets: Budgets, settings: Settings, rounds: int, tell: Tell, measurer: Measurer | None = None
) -> Allocation:
    """The best plan within the budgets, corrected in at most ``rounds`` rounds; 0: neither measured nor corrected.

    ``measured`` of the result holds ``kl`` of the plan, ``kl_before`` of the uncorrected one, and ``rounds`` that paid.
    """
    tell("solve")
    best = allocate(profile, budgets, settings)
    if rounds == 0:
        return best
    measurer = measurer or Measurer(profile, tell)
    tell("measure the plan")
    before = lowest = measurer.held_out.divergence(best.plan.schemes)
    factors: dict[str, float] = dict.fromkeys(best.plan.schemes, 1.0)
    paid = 0
    for number in range(rounds):
        tell(f"round {number + 1}: find the parts of the sites, divergence {lowest:.4g}")
        wanted = corrected(factors, best, contributions_of(measurer, best.plan.schemes))
        for share in (1.0, 0.5):
            blended = {site: factors[site] ** (1 - share) * wanted[site] ** share for site in factors}
            tell(f"round {number + 1}: solve again")
            tried = allocate(profile, budgets, replace(settings, factors=blended))
            if tried.plan.schemes == best.plan.schemes:
                continue
            tell(f"round {number + 1}: measure, divergence so far {lowest:.4g}")
            found = measurer.held_out.divergence(tried.plan.schemes)
            if found < lowest:
                best, lowest, factors = tried, found, blended
                paid += 1
                break
        else:
            break
    return _measured(best, {"kl": lowest, "kl_before": before, "rounds": float(paid)})


def contributions_of(measurer: Measurer, schemes: Mapping[str, Scheme]) -> dict[str, float]:
    """Each site's part of the plan's divergence."""
    from bitwright.budgets.contributions import contributions

    return contributions(measurer.fitted, schemes)


def corrected(factors: Mapping[str, float], plan: Allocation, parts: Mapping[str, float]) -> dict[str, float]:
    """New factors by site: the old ones times part found over loss predicted, within bounds."""
    result = {}
    for decision in plan.decisions:
        loss = decision.uses["kl"]
        ratio = parts.get(decision.site, 0.0) / loss if loss > 0 else 1.0
        result[decision.site] = factors[decision.site] * min(max(ratio, LEAST), MOST)
    return result


def _measured(found: Allocation, measured: Mapping[str, float]) -> Allocation:
    """With what was measured, in the plan's notes as well."""
    whole = replace(found, measured=measured)
    return replace(whole, plan=replace(found.plan, notes={**found.plan.notes, **whole.to_json()}))
