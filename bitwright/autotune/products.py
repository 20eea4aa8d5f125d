"""The matrix products and attentions of a model's plan, as kernels to be timed.

Members of a fused group are one product, as the fusion passes leave them; its scheme lists the runs of all members when
they differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.autotune.latency import LINEAR
from bitwright.autotune.workload import Workload
from bitwright.plan import Plan
from bitwright.runs import Run, runs_of, scheme_of
from bitwright.scheme import CacheScheme
from bitwright.site import Site

_ROLE = re.compile(r"layer\.(?P<layer>\d+)\.(?P<role>[a-z_]+)")


@dataclass(frozen=True)
class Model:
    """What predictions need to know about a model: its sites in order, and sha256 of its canonical form."""

    sites: tuple[Site, ...]
    digest: str


def attention_sites(sites: Sequence[Site]) -> list[tuple[tuple[int, int, int], str, str]]:
    """Of each layer with a cache: (heads, heads of the cache, head size), and the names of its two caches."""
    layers: dict[int, dict[str, Site]] = {}
    for site in sites:
        if site.kind in ("k_cache", "v_cache"):
            layers.setdefault(_layer(site), {})[site.kind] = site
        elif _role(site) == "o":
            layers.setdefault(_layer(site), {})["o"] = site
    found = []
    for layer in layers.values():
        if "k_cache" in layer and "v_cache" in layer:
            kv_heads, head_dim = layer["k_cache"].shape
            heads = layer["o"].shape[1] // layer["v_cache"].shape[1] if "o" in layer else kv_heads
            found.append(((heads, kv_heads, head_dim), layer["k_cache"].name, layer["v_cache"].name))
    return found


def working_set(sites: Sequence[Site], plan: Plan, context: int) -> int:
    """Bytes of weights and caches that one step reads (tile padding left out)."""
    total = 0
    for site in sites:
        scheme = plan.schemes[site.name]
        if isinstance(scheme, CacheScheme):
            total += context * scheme.bytes_per_token(*site.shape)
        elif site.kind == "linear" or site.tied:
            inputs = site.shape[1]
            total += sum(run.scheme.weight.storage_bytes(run.rows, inputs) for run in runs_of(scheme, site.shape[0]))
    return total


def schemes_in(sites: Sequence[Site], plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a plan is made of, each name once: schemes of products, and pairs of cache schemes (``k16v16``)."""
    products = (
        run.scheme.name
        for site in sites
        if not isinstance(scheme := plan.schemes[site.name], CacheScheme)
        for run in runs_of(scheme, site.shape[0])
    )
    pairs = (f"{plan.schemes[keys]}{plan.schemes[values]}" for _, keys, values in attention_sites(sites))
    return tuple(dict.fromkeys(products)), tuple(dict.fromkeys(pairs))


def linear_workloads(sites: Sequence[Site], plan: Plan, m: int, threads: int, isa: str) -> list[Workload]:
    """The matrix products in order, fused as the compiler fuses them; the lm_head last."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        if site.kind == "linear":
            groups.setdefault(site.group or site.name, []).append(site)
    products = [*groups.values(), *([site] for site in sites if site.tied)]
    return [_product(members, plan, m, threads, isa) for members in products]


def prompt_workloads(sites: Sequence[Site], plan: Plan, m: int, threads: int, isa: str) -> list[Workload]:
    """The products of a chunk of ``m`` tokens: what lies behind the last attention runs for its last token only."""
    behind = last_token_sites(sites)
    every = [site for site in sites if site.name not in behind]
    final = [site for site in sites if site.name in behind]
    return [*linear_workloads(every, plan, m, threads, isa), *linear_workloads(final, plan, 1, threads, isa)]


def last_token_sites(sites: Sequence[Site]) -> frozenset[str]:
    """Names of the products behind the last attention: the lm_head, and what the last layer does with its result."""
    last = max((_layer(site) for site in sites if site.kind == "k_cache"), default=-1)
    return frozenset(
        site.name
        for site in sites
        if site.tied
        or (site.kind == "linear" and _layer(site) < 0)
        or (site.kind == "linear" and _layer(site) == last and not set(_role(site)) <= set("qkv"))
    )


def _product(members: Sequence[Site], plan: Plan, m: int, threads: int, isa: str) -> Workload:
    """One matrix product over the rows of all members; neighbouring runs with one scheme are one run."""
    runs: list[Run] = []
    for site in members:
        scheme = plan.schemes[site.name]
        assert not isinstance(scheme, CacheScheme)
        for run in runs_of(scheme, site.shape[0]):
            if runs and runs[-1].scheme == run.scheme:
                run = Run(run.scheme, runs.pop().rows + run.rows)
            runs.append(run)
    shape = (sum(run.rows for run in runs), members[0].shape[1])
    return Workload(LINEAR, shape, str(scheme_of(tuple(runs))), m, threads, isa)


def _layer(site: Site) -> int:
    match = _ROLE.match(site.name)
    return int(match["layer"]) if match else -1


def _role(site: Site) -> str:
    match = _ROLE.match(site.name)
    return match["role"] if match else ""
