"""Predicts the time of a whole decode step, or of a prompt's linear layers, from a plan and a latency table.

The kernels of a step follow from the sites as the fusion passes leave them: members of a group are one matrix product,
whose scheme lists the runs of all members when they differ; norms quantize for what reads them; a gated feed-forward
is recognised by two equal matrices that share an input. What is small and unlike this in a model (positions,
LayerNorm instead of RMSNorm) counts as if it were.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bitwright.autotune.latency import LatencyTable
from bitwright.autotune.workload import Workload
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.plan import Plan
from bitwright.runs import Run, runs_of, scheme_of
from bitwright.scheme import CacheScheme
from bitwright.site import Site

_ROLE = re.compile(r"layer\.(?P<layer>\d+)\.(?P<role>[a-z_]+)")


@dataclass(frozen=True)
class StepPrediction:
    """A predicted time.

    Attributes:
        milliseconds: of the whole.
        relative_error: of the whole, if the errors of all kernels that were not measured went the same way.
        by_op: milliseconds of each kind of kernel; ``step`` is what lies outside them.
        predicted: kernels that were not measured.
    """

    milliseconds: float
    relative_error: float
    by_op: dict[str, float]
    predicted: int


def predict_step(table: LatencyTable, sites: Sequence[Site], plan: Plan, context: int, threads: int) -> StepPrediction:
    """Milliseconds of decoding one token after ``context - 1`` others.

    Raises:
        UnsupportedError: a kernel was neither measured nor can be predicted.
    """
    work = Counter(step_workloads(sites, plan, context, threads, table.isa))
    return _sum(table, work, working_set(sites, plan, context), table.constants.get("step", 0.0))


def predict_prefill(
    table: LatencyTable, sites: Sequence[Site], plan: Plan, tokens: int, chunk: int, threads: int
) -> StepPrediction:
    """Milliseconds that the linear layers of a prompt take in chunks of ``chunk`` tokens; the lm_head runs once."""
    work: Counter[Workload] = Counter()
    size = working_set(sites, plan, 1)
    full, rest = divmod(tokens, chunk)
    for m, count in ((chunk, full), (rest, 1)):
        if m and count:
            for one in linear_workloads(sites, plan, m, threads, table.isa, head=False):
                work[one] += count
    for one in linear_workloads(sites, plan, 1, threads, table.isa)[-1:] if _head(sites) else []:
        work[one] += 1
    return _sum(table, work, size, 0.0)


def _sum(table: LatencyTable, work: Counter[Workload], size: int, constant: float) -> StepPrediction:
    by_op, wrong, predicted = {"step": 1e3 * constant}, 0.0, 0
    for workload, count in sorted(work.items()):
        found = table.look_up(workload, size)
        by_op[workload.op] = by_op.get(workload.op, 0.0) + count * found.milliseconds
        wrong += count * found.milliseconds * found.relative_error
        predicted += not found.measured
    total = sum(by_op.values())
    return StepPrediction(total, wrong / total, by_op, predicted)


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


def linear_workloads(
    sites: Sequence[Site], plan: Plan, m: int, threads: int, isa: str, *, head: bool = True
) -> list[Workload]:
    """The matrix products in order, fused as the compiler fuses them; the lm_head last."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        if site.kind == "linear" and (head or not site.name.startswith("head")):
            groups.setdefault(site.group or site.name, []).append(site)
    products = [*groups.values(), *([site] for site in sites if head and site.tied)]
    return [_product(members, plan, m, threads, isa) for members in products]


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
    return Workload("linear", shape, str(scheme_of(tuple(runs))), m, threads, isa)


def _head(sites: Sequence[Site]) -> bool:
    return any(site.tied or site.name.startswith("head") for site in sites)


def step_workloads(sites: Sequence[Site], plan: Plan, context: int, threads: int, isa: str) -> list[Workload]:
    """Every kernel of a decode step that takes time, repeated as often as it runs."""

    def work(op: str, shape: tuple[int, ...], scheme: str = "") -> Workload:
        return Workload(op, shape, scheme, 1, threads, isa)

    found = linear_workloads(sites, plan, 1, threads, isa)
    for table in (site for site in sites if site.kind == "table"):
        found.append(work("embedding", table.shape, str(plan.schemes[table.name])))
        if table.tied:
            found += [work("argmax", table.shape[:1]), work("norm", table.shape[1:], _quantized(plan, table))]
    caches = {(_layer(site), site.kind): site for site in sites if site.kind in ("k_cache", "v_cache")}
    for (layer, kind), keys in caches.items():
        if kind != "k_cache":
            continue
        names = f"{plan.schemes[keys.name]}{plan.schemes[caches[layer, 'v_cache'].name]}"
        linears = [site for site in sites if site.kind == "linear" and _layer(site) == layer]
        found += _layer_workloads(work, keys.shape, names, context, linears, plan)
    return found


def _layer_workloads(
    work: Callable[..., Workload], cache: tuple[int, int], names: str, context: int, linears: Sequence[Site], plan: Plan
) -> Iterable[Workload]:
    kv_heads, head_dim = cache
    output = next((site for site in linears if _role(site) == "o"), None)
    heads = output.shape[1] // head_dim if output else kv_heads
    yield work("attention", (heads, kv_heads, head_dim, context), names)
    yield work("append", (kv_heads, head_dim), names)
    yield work("rope", (heads, head_dim))
    yield work("rope", (kv_heads, head_dim))
    if output is not None and _quantized(plan, output):
        yield work("quantize", output.shape[1:], _quantized(plan, output))
    inputs = [site for site in linears if set(_role(site)) <= set("qkv")]
    if inputs:
        yield work("norm", inputs[0].shape[1:], _quantized(plan, inputs[0]))
    feed = [site for site in linears if _role(site) == "mlp"]
    if not feed:
        return
    yield work("norm", feed[0].shape[1:], _quantized(plan, feed[0]))
    down = feed[-1]
    if sum(site.shape == feed[0].shape for site in feed) >= 2:
        yield work("glu", down.shape[1:], _quantized(plan, down))


def _quantized(plan: Plan, site: Site) -> str:
    """How the input of a site is quantized, as ``QuantizedRows`` names it (``a8g32``); empty for a float."""
    scheme = plan.schemes[site.name]
    if isinstance(scheme, CacheScheme):
        return ""
    first = runs_of(scheme, site.shape[0])[0].scheme
    return QuantizedRows(first.weight.group, first.terms).name if first.terms else ""


def _layer(site: Site) -> int:
    match = _ROLE.match(site.name)
    return int(match["layer"]) if match else -1


def _role(site: Site) -> str:
    match = _ROLE.match(site.name)
    return match["role"] if match else ""
