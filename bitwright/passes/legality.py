"""Refuse a plan that asks for kernels which do not exist, naming every such site. Nothing is skipped silently."""

from __future__ import annotations

from typing import Any

from bitwright.codegen.cache_layout import why_no_packed_cache
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear import linear_spec, why_illegal
from bitwright.errors import UnsupportedError
from bitwright.plan import Plan
from bitwright.runs import Scheme
from bitwright.scheme import BITS, CACHE_GROUPS, CODEBOOK_BITS, GROUPS, CacheScheme, LinearScheme, WeightScheme
from bitwright.site import Site

SHOWN = 8


def reason(site: Site, scheme: Scheme, isa: Isa) -> str | None:
    """None if ``site`` can be compiled with ``scheme``, else why not."""
    if isinstance(scheme, CacheScheme):
        return why_no_packed_cache(scheme, site.shape[1])
    return why_illegal(linear_spec(scheme, *site.shape, bias=site.bias), isa)


def check_legal(plan: Plan, sites: tuple[Site, ...], isa: Isa) -> None:
    """Check every site of a plan.

    Raises:
        UnsupportedError: naming the sites, their schemes and the reasons.
    """
    found = [
        f"{site.name} [{site.shape[0]} x {site.shape[1]}] {plan.schemes[site.name]}: {why}"
        for site in sites
        if (why := reason(site, plan.schemes[site.name], isa)) is not None
    ]
    _check_runs(plan, sites)
    if not found:
        return
    shown = "; ".join(found[:SHOWN]) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    raise UnsupportedError(
        f"{len(found)} of {len(sites)} sites have no kernel for their scheme on {isa.name}",
        where=shown,
        remedy="choose a group size that divides the inputs (bitwright inspect lists the legal schemes), or 16 bits",
    )


def _check_runs(plan: Plan, sites: tuple[Site, ...]) -> None:
    """Runs of recent tokens are of one length: sessions begin again where all of them begin."""
    packed = [(site, s) for site in sites if isinstance(s := plan.schemes[site.name], CacheScheme) and not s.is_float]
    first: dict[int, Site] = {}
    for site, scheme in packed:
        first.setdefault(scheme.recent, site)
    lengths = sorted(length for length in first if length)
    layers: dict[str, set[int]] = {}
    for site, scheme in packed:
        layers.setdefault(site.name.rpartition(".")[0], set()).add(scheme.recent)
    mixed = next((layer for layer, runs in layers.items() if len(runs) > 1), None)
    if len(lengths) < 2 and mixed is None:
        return
    where = f"keys and values of {mixed}" if mixed else ", ".join(f"{first[n].name} r{n}" for n in lengths)
    raise UnsupportedError(
        "caches that keep different numbers of recent tokens",
        where=where,
        limit="packed keys and values of a layer, and all layers that keep any, keep equally many",
        remedy=f"end their names in r{lengths[0]}",
    )


def legal_weights(site: Site, isa: Isa) -> list[WeightScheme]:
    """Every weight scheme that ``site`` can have: uniform symmetric ones, narrowest first, codebooks, f16 and f32."""
    return [weight for weight in weight_schemes() if reason(site, LinearScheme(weight), isa) is None]


def weight_schemes() -> list[WeightScheme]:
    """Every weight scheme without zero points."""
    uniform = [WeightScheme("uniform", bits, group) for bits in BITS for group in (*GROUPS, 0)]
    codebook = [WeightScheme("codebook", bits, group) for bits in CODEBOOK_BITS for group in (*GROUPS, 0)]
    return [*uniform, *codebook, WeightScheme("float", 16), WeightScheme("float", 32)]


def legal_caches(site: Site) -> list[CacheScheme]:
    """Schemes that a cache ``site`` can have, narrowest first, then 16 and 32 bits; packed ones may end in r32 too."""
    letter: Any = site.kind[0]
    packed = [CacheScheme(letter, bits, group) for bits in BITS for group in (*CACHE_GROUPS, 0)]
    packed += [CacheScheme(letter, bits, group, mapped=True) for bits in BITS for group in (*CACHE_GROUPS, 0)]
    if letter == "k":
        pairs = [(high, low) for high in BITS for low in BITS if low < high]
        packed += [CacheScheme(letter, high, mapped=True, low=low) for high, low in pairs]
    candidates = [*packed, CacheScheme(letter, 16), CacheScheme(letter, 32)]
    return [scheme for scheme in candidates if why_no_packed_cache(scheme, site.shape[1]) is None]
