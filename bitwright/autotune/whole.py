"""From sums of kernels to times of a whole model, by the bytes that a step reads.

    seconds = rest(bytes) + scale(bytes) * sum of the matrix products as they were timed one by one

``scale`` is what the products of an anchor took in the whole over what they sum up to, near 1. A whole step finds more
of a small model in the last cache level than kernels that are timed alone do, and how much more depends on how large
the model is: both are interpolated between anchors of several uniform schemes, by the bytes of their steps. Outside
the anchors they are those of the nearest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from bitwright.autotune.anchor import Anchors
from bitwright.autotune.interpolation import between
from bitwright.autotune.latency import LatencyTable
from bitwright.autotune.products import Model, linear_workloads, prompt_workloads, working_set
from bitwright.plan import Plan, uniform_plan
from bitwright.scheme import LinearScheme

ALONE_ERROR = 0.15
"""Relative error of products of other widths than a single anchor has: -9 to +23 % were found (docs/results.md)."""

NEAR = 0.05
"""A working set within this of an anchor's needs no interpolation."""


@dataclass(frozen=True)
class Whole:
    """One model on one number of threads."""

    table: LatencyTable
    model: Model
    threads: int
    anchors: tuple[Anchors, ...]

    @classmethod
    def of(cls, table: LatencyTable, model: Model, threads: int) -> Whole:
        """Raises UnsupportedError: the table knows nothing about the whole of the model."""
        return cls(table, model, threads, table.anchors_of(model.digest, threads))

    @property
    def caches(self) -> str:
        """Of all anchors."""
        return self.anchors[0].caches

    @cached_property
    def sizes(self) -> dict[int, Anchors]:
        """Anchors by the bytes that their steps read with an empty cache."""
        return {working_set(self.model.sites, self._plan(found), 1): found for found in self.anchors}

    def scale(self, tokens: int, size: int | None) -> float:
        """What products come to in a whole, over what they were timed as, where a step reads ``size`` bytes.

        Args:
            tokens: 1: of a decode step; more: of chunks, as in the largest that was measured.
        """
        return between(self._prompts if tokens > 1 else self._steps, size)

    def rest(self, tokens: int, depth: int, size: int | None) -> float:
        """Milliseconds outside products of ``tokens`` tokens behind ``depth`` others."""
        return 1e3 * between({at: found.rest(tokens, depth) for at, found in self.sizes.items()}, size)

    def error(self, tokens: int, size: int) -> float:
        """Relative error to expect of the products of a whole, beside those of the kernels.

        The scatter of the anchors' own measurements, and between them what leaving one of them out does to its scale.
        """
        every = (anchor for found in self.anchors for anchor in found.found)
        own = max((anchor.spread for anchor in every if (anchor.tokens > 1) == (tokens > 1)), default=0.0)
        if any(abs(size / at - 1) <= NEAR for at in self.sizes):
            return own
        scales = self._prompts if tokens > 1 else self._steps
        if len(scales) == 1:
            return max(own, ALONE_ERROR)
        inner = sorted(scales)[1:-1]
        left_out = [abs(between({s: v for s, v in scales.items() if s != at}, at) / scales[at] - 1) for at in inner]
        return max(own, *left_out) if left_out else max(own, abs(max(scales.values()) / min(scales.values()) - 1) / 2)

    @cached_property
    def _steps(self) -> dict[int, float]:
        """Scales of decoding, by the bytes of the anchor's step."""
        return {size: self._scale(found, 1, size) for size, found in self.sizes.items()}

    @cached_property
    def _prompts(self) -> dict[int, float]:
        """The same of prompts."""
        largest = {size: (found, max(found.prompt_sizes(), default=2)) for size, found in self.sizes.items()}
        return {size: self._scale(found, tokens, size) for size, (found, tokens) in largest.items()}

    def _scale(self, anchors: Anchors, tokens: int, size: int) -> float:
        plan = self._plan(anchors)
        work = prompt_workloads if tokens > 1 else linear_workloads
        counts = Counter(work(self.model.sites, plan, tokens, self.threads, self.table.isa))
        alone = sum(n * self.table.look_up(product, size).milliseconds for product, n in sorted(counts.items()))
        return 1e3 * anchors.at(tokens).linear / alone

    def _plan(self, anchors: Anchors) -> Plan:
        scheme = LinearScheme.parse(anchors.scheme)
        return uniform_plan(self.model.sites, scheme, table=None, cache_bits=16, model=self.model.digest, target="")
