"""The allocation problem as arrays: sites, tiles of rows, choices, and what each choice uses of each resource.

A site's rows are cut into at most its block's ``max_runs`` runs of consecutive tiles, each run with one choice. It
uses the sum over its tiles of ``uses`` and once for each run ``starts`` (a codebook, the names in the file's header).
With one tile this is the multiple-choice knapsack problem (Kellerer, Pferschy, Pisinger, "Knapsack Problems", ch. 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.passes.allocate.best_runs import best_runs

Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Sites with equally many tiles and equally many choices.

    Attributes:
        sites: their numbers in the problem.
        uses: float64 [resources, sites, tiles, choices].
        starts: float64 [resources, sites, choices].
        max_runs: of a site at most.
    """

    sites: tuple[int, ...]
    uses: Doubles
    starts: Doubles
    max_runs: int = 1


@dataclass(frozen=True)
class Vertex:
    """A whole solution.

    Attributes:
        choices: int64 [sites of the block, tiles] for each block.
        uses: float64 [resources], everything together.
        by_site: float64 [resources, sites of the block] for each block.
    """

    choices: tuple[Numbers, ...]
    uses: Doubles
    by_site: tuple[Doubles, ...]


@dataclass(frozen=True)
class Problem:
    """Blocks, and what is used whatever is chosen (float64 [resources])."""

    blocks: tuple[Block, ...]
    fixed: Doubles

    @property
    def variables(self) -> int:
        """Decisions: tiles of all sites."""
        return sum(block.uses.shape[1] * block.uses.shape[2] for block in self.blocks)

    def best(self, weights: Doubles) -> Vertex:
        """The solution that minimises ``weights`` float64 [resources] times uses: exact, ties to the first choice."""
        choices = []
        for block in self.blocks:
            costs = np.tensordot(weights, block.uses, 1)
            starts = np.tensordot(weights, block.starts, 1)
            choices.append(best_runs(costs, starts, block.max_runs))
        return self.vertex(choices)

    def vertex(self, choices: Sequence[Numbers]) -> Vertex:
        """What a solution uses."""
        by_site = tuple(uses_of(block, chosen) for block, chosen in zip(self.blocks, choices, strict=True))
        total = self.fixed + sum((used.sum(axis=1) for used in by_site), np.zeros(len(self.fixed)))
        return Vertex(tuple(choices), total, by_site)


def uses_of(block: Block, choices: Numbers) -> Doubles:
    """float64 [resources, sites] of ``choices`` int64 [sites, tiles]."""
    picked = np.take_along_axis(block.uses, choices[None, :, :, None], 3)[..., 0].sum(axis=2)
    begins = np.ones(choices.shape, bool)
    begins[:, 1:] = choices[:, 1:] != choices[:, :-1]
    started = np.take_along_axis(block.starts, np.broadcast_to(choices, (len(block.starts), *choices.shape)), 2)
    result: Doubles = picked + (started * begins).sum(axis=2)
    return result
