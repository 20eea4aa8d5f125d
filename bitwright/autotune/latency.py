"""Latency tables: how long a kernel takes on a target, measured where it was measured, else predicted.

``LatencyTable`` answers from measurements of kernels inside a decode step (``chain``) or, for many tokens, of their
calls. How fast weights arrive depends on how much of all weights stays in the last cache level, so decode kernels are
timed in several *working sets*, 1.25 to four times that level; a model's own size lies between them, below or above.

A product that was not measured is predicted by ``fit`` from those that were, with the error that leaving them out one
by one showed. ``anchors`` hold what whole compiled models take (``anchor``). A table is one JSON file per target, with
a digest of its content (``latency_file``). Every time has a *spread*: what scatters more than ``DISTURBED`` counts as
missing, so that it is measured again by whoever asks for it the next time, and is said until then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from bitwright.autotune.anchor import Anchor, Anchors
from bitwright.autotune.attention_latency import attention_seconds
from bitwright.autotune.fit import Fit, fit
from bitwright.autotune.interpolation import between, by_working_set
from bitwright.autotune.workload import Workload
from bitwright.errors import InputError, UnsupportedError
from bitwright.runs import WeightsScheme, parse_weights, runs_of

LINEAR, ATTENTION = "linear", "attention"

DISTURBED = 0.15
"""Spread above which a measurement is not trusted: on an idle machine few scatter by more than half of it."""


def spread(figures: Sequence[float]) -> float:
    """Interquartile range over the median: of a normal distribution 1.35 relative standard deviations."""
    if len(figures) < 2:
        return 0.0
    low, _, high = quantiles(figures, n=4, method="inclusive")
    return (high - low) / median(figures)


@dataclass(frozen=True)
class Timing:
    """Median seconds of repeated runs, and their ``spread``."""

    seconds: float
    spread: float = 0.0

    @classmethod
    def of(cls, figures: Sequence[float]) -> Timing:
        return cls(median(figures), spread(figures))


@dataclass(frozen=True)
class Entry:
    """One measurement: median seconds in a working set of so many bytes, and their spread."""

    workload: Workload
    working_set: int
    seconds: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf or self.working_set < 1:
            raise InputError("a measured time is not positive", where=f"{self.workload}: {self.seconds} s")
        if not 0 <= self.spread < math.inf:
            raise InputError("a measured time has no spread", where=f"{self.workload}: {self.spread}")


@dataclass(frozen=True)
class Latency:
    """An answer. ``relative_error``: the spread when measured, else what to expect of the prediction."""

    milliseconds: float
    measured: bool
    relative_error: float


@dataclass
class LatencyTable:
    """Measurements of one target.

    Attributes:
        fingerprint, isa: of the target.
        threads: what is meant when no number of threads is named.
        entries: kernels; ``add`` replaces an older one.
        anchors: whole models.
    """

    fingerprint: str
    isa: str
    threads: int
    entries: dict[tuple[Workload, int], Timing] = field(default_factory=dict)
    anchors: set[Anchor] = field(default_factory=set)
    _fits: dict[tuple[Any, ...], Fit] = field(default_factory=dict, repr=False, compare=False)

    def add(self, entry: Entry) -> None:
        self.entries[entry.workload, entry.working_set] = Timing(entry.seconds, entry.spread)
        self._fits.clear()

    @property
    def disturbed(self) -> dict[str, float]:
        """Spreads of what scatters too much to be trusted, by what it is."""
        kernels = {
            f"{work} in {size >> 20} MiB": timing.spread
            for (work, size), timing in sorted(self.entries.items(), key=_by_key)
        }
        wholes = {
            f"{a.scheme}, {a.tokens} tokens behind {a.depth}, {a.threads} threads": a.spread
            for a in sorted(self.anchors)
        }
        return {what: found for what, found in (kernels | wholes).items() if found > DISTURBED}

    def anchors_of(self, model: str, threads: int | None = None) -> tuple[Anchors, ...]:
        """What is known about a whole model, by uniform scheme. Raises UnsupportedError: nothing."""
        return Anchors.of(tuple(self.anchors), model, threads or self.threads)

    def add_anchors(self, anchors: Iterable[Anchor]) -> None:
        """Measurements of one model on one number of threads, which replace older ones of it."""
        found = set(anchors)
        replaced = {(anchor.model, anchor.threads) for anchor in found}
        self.anchors = {anchor for anchor in self.anchors if (anchor.model, anchor.threads) not in replaced} | found

    def milliseconds(
        self,
        op: str,
        shape: tuple[int, ...],
        scheme: str,
        tokens: int = 1,
        threads: int | None = None,
        working_set: int | None = None,
    ) -> float:
        """Time of one call.

        Args:
            op: ``linear`` (shape: outputs, inputs; an lm_head is one), or ``attention`` in decoding (shape: heads,
                heads of the cache, head size, tokens in the cache; scheme: of the caches, such as ``k4g32v4g32``).
            scheme: any linear scheme, or the schemes of runs of rows.
            working_set: bytes of weights and caches that a step reads; None: much more than the last cache level.

        Raises:
            UnsupportedError: it was not measured, and nothing like it was.
        """
        workload = Workload(op, shape, scheme, tokens, threads or self.threads, self.isa)
        return self.look_up(workload, working_set).milliseconds

    def look_up(self, workload: Workload, working_set: int | None = None) -> Latency:
        """The same, with what is known about its error."""
        measured = {size: timing for (known, size), timing in self.entries.items() if known == workload}
        if measured:
            seconds = by_working_set({size: timing.seconds for size, timing in measured.items()}, working_set)
            return Latency(1e3 * seconds, True, median(timing.spread for timing in measured.values()))
        if workload.op == ATTENTION:
            times = {key: timing.seconds for key, timing in self.entries.items() if key[0].op == ATTENTION}
            seconds, error = attention_seconds(times, workload, working_set)
            return Latency(1e3 * seconds, False, error)
        return self.product(parse_weights(workload.scheme), workload, working_set)

    def product(self, scheme: WeightsScheme, like: Workload, working_set: int | None) -> Latency:
        """A matrix product by its prices, even if it was measured itself."""
        outputs, inputs = like.shape
        runs = runs_of(scheme, outputs)
        found = self.prices(like.m, like.threads)
        seconds = _interpolated(found, lambda prices: prices.seconds(runs, inputs), like.m, working_set)
        return Latency(1e3 * seconds, False, max(fits.error_of(runs) for by in found.values() for fits in by.values()))

    def row_milliseconds(
        self,
        scheme: str,
        shape: tuple[int, int],
        tokens: int = 1,
        threads: int | None = None,
        working_set: int | None = None,
    ) -> float:
        """What each row at a scheme adds to a product of (outputs, inputs): a row tile costs this times its rows."""
        (run,) = runs_of(parse_weights(scheme), 1)
        found = self.prices(tokens, threads or self.threads)
        return 1e3 * _interpolated(found, lambda prices: prices.per_row(run.scheme, *shape), tokens, working_set)

    def prices(self, tokens: int, threads: int) -> dict[int, dict[int, Fit]]:
        """The fits by tokens and working set, those of decoding apart from those of prompts.

        Raises:
            UnsupportedError: no product was measured so.
        """
        known = {(w.m, size) for w, size in self.entries if w.op == LINEAR and w.threads == threads}
        kinds = sorted({m for m, _ in known if (m == 1) == (tokens == 1)})
        if not kinds:
            kind = "decoding" if tokens == 1 else "prompts"
            raise UnsupportedError(
                f"no latency is known for {kind} on {threads} threads",
                where=f"{tokens} tokens",
                remedy="measure with `bitwright latency`",
            )
        return {m: {size: self._fit(m, threads, size) for n, size in sorted(known) if n == m} for m in kinds}

    def _fit(self, m: int, threads: int, working_set: int) -> Fit:
        key = (m, threads, working_set)
        if key not in self._fits:
            self._fits[key] = fit(
                [
                    (runs_of(parse_weights(work.scheme), work.shape[0]), work.shape[1], timing.seconds)
                    for (work, size), timing in sorted(self.entries.items(), key=_by_key)
                    if work.op == LINEAR and (work.m, work.threads, size) == key
                ]
            )
        return self._fits[key]


def _interpolated(
    found: Mapping[int, Mapping[int, Fit]], price: Callable[[Fit], float], tokens: int, working_set: int | None
) -> float:
    by_tokens = {}
    for m, by in found.items():
        by_tokens[m] = by_working_set({size: price(fits) for size, fits in by.items()}, working_set)
    return between(by_tokens, tokens, beyond=True)


def _by_key(item: tuple[tuple[Workload, int], Timing]) -> tuple[Workload, int]:
    return item[0]


def missing(
    table: LatencyTable, workloads: Iterable[Workload], working_sets: Iterable[int]
) -> list[tuple[Workload, int]]:
    """What is still to be measured, or again because it was disturbed, in order, each once.

    Prompts compute more than they read: the largest set is enough. A product is not timed in a set smaller than itself,
    but in the largest in any case.
    """
    *smaller, largest = sorted(working_sets)
    wanted: dict[tuple[Workload, int], None] = {}
    for work in workloads:
        sizes = [size for size in smaller if work.m == 1 and _weight_bytes(work) < size]
        wanted |= dict.fromkeys((work, size) for size in (*sizes, largest))
    return [key for key in wanted if key not in table.entries or table.entries[key].spread > DISTURBED]


def _weight_bytes(work: Workload) -> int:
    if work.op != LINEAR:
        return 0
    outputs, inputs = work.shape
    runs = runs_of(parse_weights(work.scheme), outputs)
    return sum(run.scheme.weight.storage_bytes(run.rows, inputs) for run in runs)
