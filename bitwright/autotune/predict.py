"""Predicts the time of a whole decode step or of a prompt from a plan and a latency table.

    seconds = rest + scale * sum of the matrix products

Products follow from the sites as the fusion passes leave them: members of a group are one, whose scheme lists the runs
of all members when they differ. ``rest`` and ``scale`` come from the same model compiled at one scheme (``anchor``):
scale is what its products took there over what their prices sum up to, near 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.autotune.anchor import Anchors
from bitwright.autotune.latency import ATTENTION, LINEAR, LatencyTable
from bitwright.autotune.workload import Workload
from bitwright.plan import Plan, uniform_plan
from bitwright.runs import Run, runs_of, scheme_of
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site

_ROLE = re.compile(r"layer\.(?P<layer>\d+)\.(?P<role>[a-z_]+)")


@dataclass(frozen=True)
class Prediction:
    """A predicted time.

    Attributes:
        milliseconds: of the whole.
        relative_error: of the whole, if the errors of all kernels that were not measured went the same way.
        linear, attention, rest: what it is made of; attention only as far as its caches are not those of the anchor.
        predicted: kinds of products that were not measured themselves.
    """

    milliseconds: float
    relative_error: float
    linear: float
    attention: float
    rest: float
    predicted: int


@dataclass(frozen=True)
class Model:
    """What predictions need to know about a model: its sites in order, and sha256 of its canonical form."""

    sites: tuple[Site, ...]
    digest: str


def predict_step(table: LatencyTable, model: Model, plan: Plan, context: int, threads: int | None = None) -> Prediction:
    """Decoding one token after ``context - 1`` others.

    Raises:
        UnsupportedError: too little was measured.
    """
    count = threads or table.threads
    anchors = table.anchors_of(model.digest, count)
    size = working_set(model.sites, plan, context)
    work = Counter(linear_workloads(model.sites, plan, 1, count, table.isa))
    linear, wrong, predicted = _sum(table, work, size)
    scale = step_scale(table, model, anchors, count)
    attention = _attention(table, model, plan, anchors, context, count, size)
    rest = 1e3 * anchors.rest(1, context - 1)
    total = scale * linear + attention + rest
    return Prediction(total, scale * wrong / total, scale * linear, attention, rest, predicted)


def predict_prompt(
    table: LatencyTable, model: Model, plan: Plan, tokens: int, chunk: int, threads: int | None = None
) -> Prediction:
    """Reading a prompt in chunks of at most ``chunk`` tokens.

    Raises:
        UnsupportedError: too little was measured.
    """
    count = threads or table.threads
    anchors = table.anchors_of(model.digest, count)
    scale = prompt_scale(table, model, anchors, count)
    linear = wrong = rest = 0.0
    predicted = 0
    for start in range(0, tokens, chunk):
        m = min(chunk, tokens - start)
        work = Counter(prompt_workloads(model.sites, plan, m, count, table.isa))
        milliseconds, errors, unmeasured = _sum(table, work, None)
        linear, wrong, predicted = linear + milliseconds, wrong + errors, max(predicted, unmeasured)
        rest += 1e3 * anchors.rest(m, start)
    total = scale * linear + rest
    return Prediction(total, scale * wrong / total, scale * linear, 0.0, rest, predicted)


def step_scale(table: LatencyTable, model: Model, anchors: Anchors, threads: int) -> float:
    """What the products of the anchor's decode step took over what they were measured as, one by one."""
    plan = _anchor_plan(model, anchors)
    work = Counter(linear_workloads(model.sites, plan, 1, threads, table.isa))
    return 1e3 * anchors.at(1).linear / _sum(table, work, working_set(model.sites, plan, 1))[0]


def prompt_scale(table: LatencyTable, model: Model, anchors: Anchors, threads: int) -> float:
    """The same for the largest chunk that was measured."""
    tokens = anchors.prompt_sizes()[-1] if anchors.prompt_sizes() else 2
    plan = _anchor_plan(model, anchors)
    work = Counter(prompt_workloads(model.sites, plan, tokens, threads, table.isa))
    return 1e3 * anchors.at(tokens).linear / _sum(table, work, None)[0]


def _anchor_plan(model: Model, anchors: Anchors) -> Plan:
    scheme = LinearScheme.parse(anchors.scheme)
    return uniform_plan(model.sites, scheme, table=None, cache_bits=16, model=model.digest, target="")


def _sum(table: LatencyTable, work: Counter[Workload], size: int | None) -> tuple[float, float, int]:
    """Milliseconds of products, those that may be wrong in the same direction, and how many were not measured."""
    total, wrong, predicted = 0.0, 0.0, 0
    for workload, count in sorted(work.items()):
        found = table.look_up(workload, size)
        total += count * found.milliseconds
        wrong += count * found.milliseconds * found.relative_error
        predicted += not found.measured
    return total, wrong, predicted


def _attention(
    table: LatencyTable, model: Model, plan: Plan, anchors: Anchors, context: int, threads: int, size: int
) -> float:
    """Milliseconds that attention takes longer than over the anchor's caches."""
    total = 0.0
    for shape, keys, values in attention_sites(model.sites):
        names = f"{plan.schemes[keys]}{plan.schemes[values]}"
        if names != anchors.caches:
            asked = [
                (name, Workload(ATTENTION, (*shape, context), name, 1, threads, table.isa))
                for name in (names, anchors.caches)
            ]
            chosen, known = (table.look_up(work, size).milliseconds for _, work in asked)
            total += chosen - known
    return total


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
