"""What each choice of a plan adds to its time: the additive form of ``predict`` that allocation solves with.

A plan's time is about ``fixed`` plus the costs of its sites. What is left out is small: a product's exact measurement
is replaced by its prices, and fewer, longer calls are not told apart. ``step`` and ``prompt`` leave nothing out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from bitwright.autotune.attention_latency import keys_like, values_like
from bitwright.autotune.latency import ATTENTION, LatencyTable
from bitwright.autotune.predict import predict_prompt, predict_step
from bitwright.autotune.products import Model, attention_sites, last_token_sites, working_set
from bitwright.autotune.whole import Whole
from bitwright.autotune.workload import Workload
from bitwright.options import DEFAULT_CHUNK
from bitwright.plan import Plan
from bitwright.runs import Scheme, WeightsScheme, runs_of
from bitwright.scheme import CacheScheme
from bitwright.site import Site

SAME_BYTES = 0.05
"""Relative difference in bytes that hardly changes how fast they are read."""


@dataclass(frozen=True)
class SiteCosts:
    """Milliseconds by site and scheme, of one decode step and of one chunk of a prompt.

    Attributes:
        table: what was measured on the target.
        model: its sites and digest; ``table`` must hold an anchor of it.
        context: tokens in the cache at the decode step that is counted.
        chunk: tokens of the chunk.
        threads: 0: the table's own.
        working_set: bytes that a step is expected to read, such as the budget; 0: as many as the smallest anchor's.
    """

    table: LatencyTable
    model: Model
    context: int = 1
    chunk: int = DEFAULT_CHUNK
    threads: int = 0
    working_set: int = 0

    @cached_property
    def _threads(self) -> int:
        return self.threads or self.table.threads

    @cached_property
    def _whole(self) -> Whole:
        return Whole.of(self.table, self.model, self._threads)

    @cached_property
    def _size(self) -> int:
        return self.working_set or min(self._whole.sizes)

    @property
    def decode_fixed(self) -> float:
        """Milliseconds of a decode step that no choice changes: everything but products, with the anchor's caches."""
        return self._whole.rest(1, self.context - 1, self._size)

    @property
    def prefill_fixed(self) -> float:
        """The same of a chunk that starts a prompt."""
        return self._whole.rest(self.chunk, 0, self._size)

    def decode(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float:
        """Milliseconds that a site adds to a decode step; a cache: beside one of the anchor's scheme.

        Raises:
            UnsupportedError: nothing like it was measured.
        """
        if isinstance(scheme, CacheScheme):
            return self._cache(site, scheme)
        if site.kind != "linear" and not site.tied:
            return 0.0  # one row is looked up
        return self._whole.scale(1, self._size) * self._rows(site, scheme, 1)

    def prefill(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float:
        """Milliseconds that a site adds to a chunk. Caches count as nothing: what they cost there is not told apart."""
        if isinstance(scheme, CacheScheme) or (site.kind != "linear" and not site.tied):
            return 0.0
        tokens = 1 if site.name in last_token_sites(self.model.sites) else self.chunk
        return self._whole.scale(self.chunk, self._size) * self._rows(site, scheme, tokens)

    def step(self, schemes: Mapping[str, Scheme]) -> float:
        """Milliseconds of the decode step of a whole plan.

        Raises:
            UnsupportedError: nothing like one of its products was measured.
        """
        return predict_step(self.table, self.model, self._plan(schemes), self.context, self._threads).milliseconds

    def prompt(self, schemes: Mapping[str, Scheme], tokens: int) -> float:
        """The same of a prompt of so many tokens."""
        plan = self._plan(schemes)
        return predict_prompt(self.table, self.model, plan, tokens, DEFAULT_CHUNK, self._threads).milliseconds

    def reading(self, schemes: Mapping[str, Scheme]) -> SiteCosts:
        """Prices where a step reads what a plan reads: these, if that is about what they were counted for.

        Half way there, because the plan that these prices lead to will read less the dearer bytes become.
        """
        size = working_set(self.model.sites, self._plan(schemes), self.context)
        near = abs(size / self._size - 1) <= SAME_BYTES
        return self if near else replace(self, working_set=round((size * self._size) ** 0.5))

    def _plan(self, schemes: Mapping[str, Scheme]) -> Plan:
        return Plan(dict(schemes), self.model.digest, self.table.fingerprint)

    def _rows(self, site: Site, scheme: WeightsScheme, tokens: int) -> float:
        shape = (self._outputs[site.group or site.name], site.shape[1])
        return sum(run.rows * self._row(str(run.scheme), shape, tokens) for run in runs_of(scheme, site.shape[0]))

    def _row(self, scheme: str, shape: tuple[int, int], tokens: int) -> float:
        """Milliseconds of a row; many sites have one shape."""
        key = (scheme, shape, tokens)
        if key not in self._priced:
            self._priced[key] = self.table.row_milliseconds(scheme, shape, tokens, self._threads, self._size)
        return self._priced[key]

    @cached_property
    def _priced(self) -> dict[tuple[str, tuple[int, int], int], float]:
        return {}

    @cached_property
    def _outputs(self) -> dict[str, int]:
        """Rows of the product that a site is part of, by its group, or its name if it stands alone."""
        found: dict[str, int] = {}
        for site in self.model.sites:
            key = site.group or site.name
            found[key] = found.get(key, 0) + site.shape[0]
        return found

    def _cache(self, site: Site, scheme: CacheScheme) -> float:
        """Half of what both caches of this scheme cost together, less half of the anchor's."""
        shape = next(shape for shape, *names in attention_sites(self.model.sites) if site.name in names)
        alike = scheme.name + values_like(scheme) if scheme.tensor == "k" else keys_like(scheme) + scheme.name
        if alike == self._whole.caches:
            return 0.0

        def milliseconds(names: str) -> float:
            work = Workload(ATTENTION, (*shape, self.context), names, 1, self._threads, self.table.isa)
            return self.table.look_up(work, self._size).milliseconds

        return (milliseconds(alike) - milliseconds(self._whole.caches)) / 2
