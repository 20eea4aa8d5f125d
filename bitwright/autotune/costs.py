"""What each choice of a plan adds to its time: the additive form of ``predict`` that allocation solves with.

A plan's time is about ``fixed`` plus the costs of its sites. What is left out is small: a product's exact measurement
is replaced by its prices, and fewer, longer calls are not told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bitwright.autotune.anchor import Anchors
from bitwright.autotune.latency import ATTENTION, LatencyTable, keys_like, values_like
from bitwright.autotune.predict import (
    Model,
    attention_sites,
    last_token_sites,
    prompt_scale,
    step_scale,
    working_set,
)
from bitwright.autotune.workload import Workload
from bitwright.plan import uniform_plan
from bitwright.runs import WeightsScheme, runs_of
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site


@dataclass(frozen=True)
class SiteCosts:
    """Milliseconds by site and scheme, of one decode step and of one chunk of a prompt.

    Attributes:
        table: what was measured on the target.
        model: its sites and digest; ``table`` must hold an anchor of it.
        context: tokens in the cache at the decode step that is counted.
        chunk: tokens of the chunk.
        threads: 0: the table's own.
        working_set: bytes that a step is expected to read, such as the budget; 0: as many as the anchor's.
    """

    table: LatencyTable
    model: Model
    context: int = 1
    chunk: int = 256
    threads: int = 0
    working_set: int = 0

    @cached_property
    def _threads(self) -> int:
        return self.threads or self.table.threads

    @cached_property
    def _anchors(self) -> Anchors:
        return self.table.anchors_of(self.model.digest, self._threads)

    @cached_property
    def _size(self) -> int:
        if self.working_set:
            return self.working_set
        scheme = LinearScheme.parse(self._anchors.scheme)
        plan = uniform_plan(self.model.sites, scheme, table=None, cache_bits=16, model="", target="")
        return working_set(self.model.sites, plan, self.context)

    @cached_property
    def _scales(self) -> tuple[float, float]:
        arguments = (self.table, self.model, self._anchors, self._threads)
        return step_scale(*arguments), prompt_scale(*arguments)

    @property
    def decode_fixed(self) -> float:
        """Milliseconds of a decode step that no choice changes: everything but products, with the anchor's caches."""
        return 1e3 * self._anchors.rest(1, self.context - 1)

    @property
    def prefill_fixed(self) -> float:
        """The same of a chunk that starts a prompt."""
        return 1e3 * self._anchors.rest(self.chunk, 0)

    def decode(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float:
        """Milliseconds that a site adds to a decode step; a cache: beside one of the anchor's scheme.

        Raises:
            UnsupportedError: nothing like it was measured.
        """
        if isinstance(scheme, CacheScheme):
            return self._cache(site, scheme)
        if site.kind != "linear" and not site.tied:
            return 0.0  # one row is looked up
        return self._scales[0] * self._rows(site, scheme, 1)

    def prefill(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float:
        """Milliseconds that a site adds to a chunk. Caches count as nothing: what they cost there is not told apart."""
        if isinstance(scheme, CacheScheme) or (site.kind != "linear" and not site.tied):
            return 0.0
        tokens = 1 if site.name in last_token_sites(self.model.sites) else self.chunk
        return self._scales[1] * self._rows(site, scheme, tokens)

    def _rows(self, site: Site, scheme: WeightsScheme, tokens: int) -> float:
        shape = (self._outputs[site.group or site.name], site.shape[1])
        return sum(
            run.rows * self.table.row_milliseconds(str(run.scheme), shape, tokens, self._threads, self._size)
            for run in runs_of(scheme, site.shape[0])
        )

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
        if alike == self._anchors.caches:
            return 0.0

        def milliseconds(names: str) -> float:
            work = Workload(ATTENTION, (*shape, self.context), names, 1, self._threads, self.table.isa)
            return self.table.look_up(work, self._size).milliseconds

        return (milliseconds(alike) - milliseconds(self._anchors.caches)) / 2
