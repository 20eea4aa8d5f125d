"""A profile written by hand: losses follow a formula, so that what is best can be derived."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitwright.plan import Plan, parse_site_scheme
from bitwright.runs import Scheme
from bitwright.sensitivity import TILE_ROWS, Profile, ProfileHeader, SiteScores, StoredMatrix, StoredTensor
from bitwright.site import Site

BITS = (2, 3, 4, 5, 6, 8)
WEIGHTS = tuple(f"u{bits}g32" for bits in BITS)
CACHES = ("4g32", "8g32", "16")
ACTIVATION = 1e-5
"""Share of a site's importance that 8-bit activations cost, whatever the weights."""

SITES = (
    Site("table", "table", (384, 64), "embed", tied=True),
    *(
        site
        for layer in range(2)
        for site in (
            Site(f"layer.{layer}.q", "linear", (128, 64), f"q{layer}"),
            Site(f"layer.{layer}.mlp.0", "linear", (192, 64), f"up{layer}"),
            Site(f"layer.{layer}.k_cache", "k_cache", (2, 32)),
            Site(f"layer.{layer}.v_cache", "v_cache", (2, 32)),
        )
    ),
)
IMPORTANCE = {"table": 1.0, "layer.0.q": 8.0, "layer.0.mlp.0": 2.0, "layer.1.q": 0.5, "layer.1.mlp.0": 0.25}


def importance(site: Site) -> float:
    return IMPORTANCE.get(site.name, 0.125)


def scores(site: Site) -> SiteScores:
    """A weight of ``bits`` bits loses importance * 4**-bits, twice as much in the first tile as in each other."""
    if not site.weight:
        names = {"4g32": 4, "8g32": 8, "16": 16}
        losses = {f"{site.kind[0]}{name}": importance(site) * 4.0**-bits for name, bits in names.items()}
        return SiteScores(site.name, caches=losses)
    tiles = -(-site.shape[0] // TILE_ROWS)
    share = np.ones(tiles)
    share[0] = 2
    share *= importance(site) / share.sum()
    weights = {name: share * 4.0**-bits for name, bits in zip(WEIGHTS, BITS, strict=True)}
    return SiteScores(site.name, weights, {"a8g32": share * ACTIVATION})


def storage_of(sites: tuple[Site, ...]) -> tuple[StoredMatrix | StoredTensor, ...]:
    """Every matrix by itself, and one vector."""
    matrices = [StoredMatrix(site.weight, (site.name,)) for site in sites if site.weight]
    return (*matrices, StoredTensor("norm", "float32", (64,)))


def write_profile(folder: Path, sites: tuple[Site, ...] = SITES, digest: str = "m" * 64) -> Profile:
    header = ProfileHeader(
        model="somewhere",
        name="small",
        digest=digest,
        target="t" * 16,
        target_name="native",
        isa="avx512vnni",
        lanes=16,
        cores=2,
        sites=sites,
        storage=storage_of(sites),
        weights=WEIGHTS,
        caches=tuple(f"{letter}{name}" for letter in "kv" for name in CACHES),
        metric="fisher",
        unit="nats per token",
        quantizer="rtn",
        moments="",
        calibration="c" * 64,
        tokens=512,
    )
    profile = Profile.begin(folder, header)
    for site in sites:
        profile.put(scores(site))
    return profile


def plan_of(default: str = "u4g32a8", sites: tuple[Site, ...] = SITES, **changes: str) -> Plan:
    """A plan with ``default`` for matrices and 16-bit caches; ``layer_0_q="u5g32a8"`` changes ``layer.0.q``."""
    named = {name.replace("__", "!").replace("_", ".").replace("!", "_"): text for name, text in changes.items()}
    schemes: dict[str, Scheme] = {}
    for site in sites:
        text = default if site.weight else f"{site.kind[0]}16"
        schemes[site.name] = parse_site_scheme(named.get(site.name, text))
    return Plan(schemes, "m" * 64, "t" * 16)
