"""From a profile to an allocation problem: every site's choices and what each uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bitwright.allocation import RESOURCES, Grain
from bitwright.codegen.layout import packed_layout
from bitwright.errors import UnsupportedError
from bitwright.passes.allocate.problem import Block, Problem
from bitwright.runs import Run, Scheme, WeightsScheme, scheme_of
from bitwright.scheme import CacheScheme, LinearScheme, WeightScheme
from bitwright.sensitivity import TILE_ROWS, Profile, ProfileHeader, SiteScores
from bitwright.site import Site

Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Choice = LinearScheme | CacheScheme
_C = TypeVar("_C", LinearScheme, CacheScheme)

ENTRY_BYTES = 90
"""Of one tensor in the file's header, beside its name."""

TABLE_FACTOR = 2
"""So many times more runs may a table have than a matrix: there is one, its kernels are few, and rows of frequent
tokens cost hundreds of times as much as those of rare ones."""


class Latencies(Protocol):
    """Milliseconds that a site's scheme adds to a decode step and to a chunk of a prompt, and what is left of each.

    They add up approximately; ``step`` and ``prompt`` are the best that is known of a whole plan.
    """

    @property
    def chunk(self) -> int: ...

    @property
    def decode_fixed(self) -> float: ...

    @property
    def prefill_fixed(self) -> float: ...

    def decode(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float: ...

    def prefill(self, site: Site, scheme: WeightsScheme | CacheScheme) -> float: ...

    def step(self, schemes: Mapping[str, Scheme]) -> float: ...

    def prompt(self, schemes: Mapping[str, Scheme], tokens: int) -> float: ...

    def reading(self, schemes: Mapping[str, Scheme]) -> Latencies:
        """Prices where a step reads what a plan reads: how fast that is depends on how much it is. May be itself."""
        ...


@dataclass(frozen=True)
class SiteChoices:
    """What a site can be.

    Attributes:
        schemes: in the order of the arrays.
        uses: float64 [resources, tiles, choices] in the order of RESOURCES.
        starts: float64 [resources, choices].
    """

    site: Site
    schemes: tuple[Choice, ...]
    uses: Doubles
    starts: Doubles

    def scheme(self, choices: Numbers) -> Scheme:
        """The site's scheme when tile i has choice ``choices[i]``."""
        picked: list[Choice] = [self.schemes[int(i)] for i in choices]
        first = picked[0]
        if isinstance(first, CacheScheme):
            return first
        if len(picked) == 1:
            return first
        runs: list[Run] = []
        for number, scheme in enumerate(picked):
            assert isinstance(scheme, LinearScheme)
            rows = min(TILE_ROWS, self.site.shape[0] - number * TILE_ROWS)
            if runs and runs[-1].scheme == scheme:
                rows += runs.pop().rows
            runs.append(Run(scheme, rows))
        return scheme_of(tuple(runs))


@dataclass(frozen=True)
class Terms:
    """What the choices are counted for.

    Attributes:
        grain: ``tile``: a matrix may be cut into runs of rows; ``matrix``: it may not.
        activations: bits that inputs may be read with.
        context: tokens of the caches that count as bytes; 0: none.
        prompt: tokens of the prompt that prefill is counted for.
        latencies: None: milliseconds are not known and count as 0.
        factors: of losses, by site: a number, or one for each tile.
    """

    grain: Grain = "tile"
    activations: tuple[int, ...] = (8,)
    context: int = 0
    prompt: int = 512
    latencies: Latencies | None = None
    factors: Mapping[str, float | Doubles] = field(default_factory=dict)


def choices_of(profile: Profile, terms: Terms) -> tuple[SiteChoices, ...]:
    """The choices of every site, in the model's order."""
    return tuple(_choices(site, profile.scores(site.name), profile.header, terms) for site in profile.header.sites)


def _choices(site: Site, scores: SiteScores, header: ProfileHeader, terms: Terms) -> SiteChoices:
    return _matrix(site, scores, header.lanes, terms) if site.weight else _cache(site, scores, header, terms)


def _measured(site: Site, schemes: Sequence[_C], latencies: Latencies | None) -> list[_C]:
    """The schemes whose times are known; all if times do not matter.

    Raises:
        UnsupportedError: none is.
    """
    if latencies is None:
        return list(schemes)
    known, why = [], None
    for scheme in schemes:
        try:
            latencies.decode(site, scheme)
            latencies.prefill(site, scheme)
            known.append(scheme)
        except UnsupportedError as error:
            why = error
    if not known and why is not None:
        raise why
    return known


def _cache(site: Site, scores: SiteScores, header: ProfileHeader, terms: Terms) -> SiteChoices:
    schemes = _measured(site, [CacheScheme.parse(name) for name in scores.caches], terms.latencies)
    factor = float(np.mean(terms.factors.get(site.name, 1.0)))
    uses = np.zeros((len(RESOURCES), 1, len(schemes)))
    for i, scheme in enumerate(schemes):
        milliseconds = 0.0 if terms.latencies is None else terms.latencies.decode(site, scheme)
        stored = scheme.bytes_at(*site.shape, terms.context) + header.map_bytes(site.name, scheme)
        uses[:, 0, i] = (factor * scores.caches[scheme.name], stored, milliseconds, 0.0)
    return SiteChoices(site, tuple(schemes), uses, np.zeros((len(RESOURCES), len(schemes))))


def _matrix(site: Site, scores: SiteScores, lanes: int, terms: Terms) -> SiteChoices:
    weights = [WeightScheme.parse(name) for name in scores.weights]
    schemes = [LinearScheme.parse(f"{w}a{bits}") for w in weights if not w.is_float for bits in terms.activations]
    # Half precision is always a choice: it is legal everywhere, and what no score says counts as lossless.
    schemes = _measured(site, [*schemes, LinearScheme.parse("f16")], terms.latencies)
    outputs, inputs = site.shape
    sizes = np.full(-(-outputs // TILE_ROWS), TILE_ROWS)
    sizes[-1] = outputs - TILE_ROWS * (len(sizes) - 1)
    uses = np.zeros((len(RESOURCES), len(sizes), len(schemes)))
    starts = np.zeros((len(RESOURCES), len(schemes)))
    for i, scheme in enumerate(schemes):
        layout = packed_layout(TILE_ROWS, inputs, scheme.weight, lanes)
        table = next((t.nbytes for t in layout.tensors if t.name == "codebook"), 0)
        uses[0, :, i] = scores.linear(scheme) * terms.factors.get(site.name, 1.0)
        uses[1, :, i] = layout.storage_bytes - table
        rest = packed_layout(int(sizes[-1]), inputs, scheme.weight, lanes)
        uses[1, -1, i] = rest.storage_bytes - table
        starts[1, i] = table + sum(len(site.weight) + ENTRY_BYTES for _ in layout.tensors)
        if terms.latencies is not None:
            uses[2, :, i] = terms.latencies.decode(site, scheme) * sizes / outputs
            uses[3, :, i] = (
                terms.latencies.prefill(site, scheme) * terms.prompt / terms.latencies.chunk * sizes / outputs
            )
    if terms.grain == "matrix":
        uses = uses.sum(axis=1, keepdims=True)
    return SiteChoices(site, tuple(schemes), uses, starts)


def problem_of(choices: Sequence[SiteChoices], fixed: Doubles, max_runs: int) -> Problem:
    """The sites' choices as blocks of equal shape.

    Args:
        max_runs: of a matrix; of a table TABLE_FACTOR times as many, if it may be cut at all.
    """
    members: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for number, choice in enumerate(choices):
        runs = max_runs * TABLE_FACTOR if choice.site.kind == "table" and max_runs > 1 else max_runs
        members.setdefault((choice.uses.shape, runs), []).append(number)
    blocks = tuple(
        Block(
            tuple(numbers),
            np.stack([choices[n].uses for n in numbers], axis=1),
            np.stack([choices[n].starts for n in numbers], axis=1),
            runs,
        )
        for (_, runs), numbers in members.items()
    )
    return Problem(blocks, fixed)
