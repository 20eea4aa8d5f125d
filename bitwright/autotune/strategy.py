"""How a search chooses what to try next. Equal records and seed give equal proposals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bitwright.autotune.records import Record
from bitwright.autotune.space import Key, Knobs, Space, key_of
from bitwright.autotune.workload import Workload

ENUMERATED = 1 << 16
"""Spaces of at most this many candidates are looked at as a whole."""


class Strategy(Protocol):
    """A way to search."""

    @property
    def name(self) -> str: ...

    def propose(self, workload: Workload, space: Space, records: Sequence[Record], count: int) -> list[Knobs]:
        """At most ``count`` candidates that have no record for this workload; fewer when the space is exhausted.

        ``records`` may hold other workloads: a strategy may learn from them.
        """
        ...


@dataclass(frozen=True)
class RandomSearch:
    """Uniformly, without repetition."""

    seed: int = 0
    name: str = "random"

    def propose(self, workload: Workload, space: Space, records: Sequence[Record], count: int) -> list[Knobs]:
        tried = tried_keys(workload, records)
        return draw(space, tried, count, generator(self.seed, workload, len(tried)))


def tried_keys(workload: Workload, records: Sequence[Record]) -> set[Key]:
    """The candidates that have a record for the workload."""
    return {key_of(record.knobs) for record in records if record.workload == workload}


def generator(seed: int, workload: Workload, step: int) -> np.random.Generator:
    """Random numbers that depend on nothing but these."""
    digest = hashlib.sha256(f"{seed} {workload} {step}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def draw(space: Space, excluded: set[Key], count: int, random: np.random.Generator) -> list[Knobs]:
    """``count`` different candidates outside ``excluded``, uniformly; all that are left if there are fewer."""
    chosen: list[Knobs] = []
    seen = set(excluded)
    numbers = random.permutation(len(space)) if len(space) <= ENUMERATED else random.integers(0, len(space), 64 * count)
    for number in numbers:
        if len(chosen) == count:
            break
        knobs = space[int(number)]
        if key_of(knobs) not in seen:
            seen.add(key_of(knobs))
            chosen.append(knobs)
    return chosen
