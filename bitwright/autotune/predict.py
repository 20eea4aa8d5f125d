"""Predicts the time of a whole decode step or of a prompt from a plan and a latency table.

    seconds = rest + scale * sum of the matrix products

Products follow from the sites as the fusion passes leave them: members of a group are one, whose scheme lists the runs
of all members when they differ. ``rest`` and ``scale`` come from the same model compiled at one scheme (``anchor``):
scale is what its products took there over what their prices sum up to, near 1 (``whole``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bitwright.autotune.latency import ATTENTION, LatencyTable
from bitwright.autotune.products import Model, attention_sites, linear_workloads, prompt_workloads, working_set
from bitwright.autotune.whole import Whole
from bitwright.autotune.workload import Workload
from bitwright.plan import Plan


@dataclass(frozen=True)
class Prediction:
    """A predicted time.

    Attributes:
        milliseconds: of the whole.
        relative_error: of the whole, if the errors of all its products went the same way.
        linear, attention, rest: what it is made of; attention only as far as its caches are not those of the anchor.
        predicted: kinds of products that were not measured themselves.
    """

    milliseconds: float
    relative_error: float
    linear: float
    attention: float
    rest: float
    predicted: int


def predict_step(table: LatencyTable, model: Model, plan: Plan, context: int, threads: int | None = None) -> Prediction:
    """Decoding one token after ``context - 1`` others.

    Raises:
        UnsupportedError: too little was measured.
    """
    count = threads or table.threads
    whole = Whole.of(table, model, count)
    size = working_set(model.sites, plan, context)
    work = Counter(linear_workloads(model.sites, plan, 1, count, table.isa))
    linear, wrong, predicted = _sum(table, work, size)
    scale, attention = whole.scale(1, size), _attention(whole, plan, context, size)
    rest = whole.rest(1, context - 1, size)
    total = scale * linear + attention + rest
    wrong += linear * whole.error(1, size)
    return Prediction(total, scale * wrong / total, scale * linear, attention, rest, predicted)


def predict_prompt(
    table: LatencyTable, model: Model, plan: Plan, tokens: int, chunk: int, threads: int | None = None
) -> Prediction:
    """Reading a prompt in chunks of at most ``chunk`` tokens.

    Raises:
        UnsupportedError: too little was measured.
    """
    count = threads or table.threads
    whole, size = Whole.of(table, model, count), working_set(model.sites, plan, 1)
    linear = wrong = rest = 0.0
    predicted = 0
    for start in range(0, tokens, chunk):
        m = min(chunk, tokens - start)
        work = Counter(prompt_workloads(model.sites, plan, m, count, table.isa))
        milliseconds, errors, unmeasured = _sum(table, work, size)
        linear, wrong, predicted = linear + milliseconds, wrong + errors, max(predicted, unmeasured)
        rest += whole.rest(m, start, size)
    scale = whole.scale(chunk, size)
    total = scale * linear + rest
    wrong += linear * whole.error(chunk, size)
    return Prediction(total, scale * wrong / total, scale * linear, 0.0, rest, predicted)


def _sum(table: LatencyTable, work: Counter[Workload], size: int | None) -> tuple[float, float, int]:
    """Milliseconds of products, those that may be wrong in the same direction, and how many were not measured."""
    total, wrong, predicted = 0.0, 0.0, 0
    for workload, count in sorted(work.items()):
        found = table.look_up(workload, size)
        total += count * found.milliseconds
        wrong += count * found.milliseconds * found.relative_error
        predicted += not found.measured
    return total, wrong, predicted


def _attention(whole: Whole, plan: Plan, context: int, size: int) -> float:
    """Milliseconds that attention takes longer than over the anchor's caches."""
    total = 0.0
    for shape, keys, values in attention_sites(whole.model.sites):
        names = f"{plan.schemes[keys]}{plan.schemes[values]}"
        if names != whole.caches:
            chosen, known = (
                whole.table.look_up(
                    Workload(ATTENTION, (*shape, context), name, 1, whole.threads, whole.table.isa), size
                ).milliseconds
                for name in (names, whole.caches)
            )
            total += chosen - known
    return total
