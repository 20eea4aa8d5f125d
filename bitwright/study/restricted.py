"""A profile of which only some schemes may be chosen: those the target has kernels for, or floating-point caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bitwright.runs import Scheme
from bitwright.scheme import ActivationScheme, CacheScheme, LinearScheme, WeightScheme
from bitwright.sensitivity import Profile, SiteScores
from bitwright.site import Site
from bitwright.target import Target

FLOAT_CACHE_BITS = 16

Allowed = Callable[[Site, Scheme], bool]


@dataclass(frozen=True)
class RestrictedProfile(Profile):
    """The profile's scores of the schemes that are ``allowed``."""

    allowed: Allowed

    def scores(self, site: str) -> SiteScores:
        found, known = super().scores(site), self.header.site(site)
        weights = {name: losses for name, losses in found.weights.items() if self.allowed(known, _with_a8(name))}
        caches = {name: loss for name, loss in found.caches.items() if self.allowed(known, CacheScheme.parse(name))}
        return replace(found, weights=weights, caches=caches)


def _with_a8(name: str) -> LinearScheme:
    weight = WeightScheme.parse(name)
    return LinearScheme(weight, ActivationScheme(16 if weight.is_float else 8))


def float_caches(profile: Profile) -> RestrictedProfile:
    """Caches stay at 16 bits; weights are what they could be."""
    before: Allowed = profile.allowed if isinstance(profile, RestrictedProfile) else lambda _, __: True

    def allowed(site: Site, scheme: Scheme) -> bool:
        return before(site, scheme) and not (isinstance(scheme, CacheScheme) and scheme.bits != FLOAT_CACHE_BITS)

    return RestrictedProfile(profile.folder, profile.header, allowed)


def retargeted(profile: Profile, target: str) -> RestrictedProfile:
    """The same scores for a target, of the schemes it has kernels for.

    What an error costs does not depend on who computes with it.
    """
    from bitwright.codegen.isa import select_isa
    from bitwright.passes.legality import reason

    machine = Target.parse(target)
    isa = select_isa(machine.features)
    header = replace(
        profile.header,
        target=machine.fingerprint,
        target_name=target,
        isa=isa.name,
        lanes=isa.lanes,
        cores=machine.cores,
    )
    return RestrictedProfile(profile.folder, header, lambda site, scheme: reason(site, scheme, isa) is None)
