"""Choose a scheme for every K and V cache under a number of bits per cached number, everything stored counted.

Losses of sites add up, so the best choice at a price per byte is every own best of a site: a vertex of the lower convex
hull of its (bytes, loss). Starting from the smallest schemes, steps along the hulls are taken in the order of what they
gain per byte, as long as they fit (the greedy solution of the multiple-choice knapsack, Sinha and Zoltners 1979): what
is left over is less than one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bitwright.errors import InfeasibleError
from bitwright.options import DEFAULT_CONTEXT
from bitwright.scheme import CacheScheme
from bitwright.sensitivity import Profile
from bitwright.site import Site


@dataclass(frozen=True)
class CacheChoice:
    """Schemes by site, the bytes of one token and of full caches in all of them, and their summed losses."""

    schemes: Mapping[str, CacheScheme]
    bytes_per_token: int
    bytes: int
    loss: float


@dataclass(frozen=True)
class _Option:
    size: int
    loss: float
    scheme: CacheScheme


def choose_caches(
    sites: Mapping[str, Site], losses: Mapping[str, Mapping[str, float]], bits: float, context: int
) -> CacheChoice:
    """Choose among the schemes that ``losses`` holds for each of ``sites``.

    Args:
        losses: site name to scheme name to loss.
        bits: most bits per cached number, all that is stored included, on average over all sites of a full cache.
        context: tokens that a cache has room for, which share what is stored once.

    Raises:
        InfeasibleError: the smallest schemes take more.
    """
    hulls = {name: _hull(site, losses[name], context) for name, site in sites.items()}
    numbers = context * sum(site.shape[0] * site.shape[1] for site in sites.values())
    limit = int(bits * numbers / 8 + 1e-9)
    at = dict.fromkeys(hulls, 0)
    used = sum(hull[0].size for hull in hulls.values())
    if used > limit:
        raise InfeasibleError(
            f"caches of {bits:g} bits",
            where="--kv-bits",
            limit=f"the smallest profiled schemes take {8 * used / numbers:.3f} at a context of {context} tokens",
            remedy="allow more bits, or profile narrower schemes; for short contexts some without r32 (--schemes)",
        )
    steps = [
        (-(before.loss - after.loss) / (after.size - before.size), order, index, name)
        for order, (name, hull) in enumerate(hulls.items())
        for index, (before, after) in enumerate(pairwise(hull))
    ]
    for _, _, index, name in sorted(steps):
        extra = hulls[name][index + 1].size - hulls[name][index].size
        if at[name] == index and used + extra <= limit:
            at[name], used = index + 1, used + extra
    chosen = {name: hull[at[name]] for name, hull in hulls.items()}
    per_token = sum(option.scheme.bytes_per_token(*sites[name].shape) for name, option in chosen.items())
    return CacheChoice({n: o.scheme for n, o in chosen.items()}, per_token, used, sum(o.loss for o in chosen.values()))


def caches_of_profile(folder: Path, bits: float, context: int | None) -> CacheChoice:
    """Choose the caches of a profiled model among the profiled schemes.

    ``context``: None for what the profiled model is compiled for without one.

    Raises:
        InputError: no profile, or one that is not finished.
        InfeasibleError: the smallest schemes take more bits.
    """
    profile = Profile.read(folder)
    sites = {site.name: site for site in profile.header.sites if site.kind in ("k_cache", "v_cache")}
    tokens = context or profile.header.positions or DEFAULT_CONTEXT
    return choose_caches(sites, {name: profile.scores(name).caches for name in sites}, bits, tokens)


def _hull(site: Site, losses: Mapping[str, float], context: int) -> list[_Option]:
    """The vertices of the lower convex hull, from the smallest size to the smallest loss."""
    schemes = [CacheScheme.parse(name) for name in losses]
    options = [_Option(scheme.bytes_at(*site.shape, context), losses[scheme.name], scheme) for scheme in schemes]
    hull: list[_Option] = []
    for option in sorted(options, key=lambda o: (o.size, o.loss, o.scheme)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _bends_down(hull[-2], hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _bends_down(first: _Option, middle: _Option, last: _Option) -> bool:
    """The middle lies on or above the line from the first to the last."""
    whole = (first.loss - last.loss) * (middle.size - first.size)
    return (first.loss - middle.loss) * (last.size - first.size) <= whole
