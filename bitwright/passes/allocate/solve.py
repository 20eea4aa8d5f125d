"""Solve an allocation problem: dual bound and prices first, then the best whole solution that meets the limits.

``exact`` chooses among all choices of one-tile sites by integer programming. ``columns`` collects each site's cuts into
runs at many prices around the best ones and chooses among those by integer programming. ``greedy`` starts with a
solution at prices high enough to meet the limits and spends what is left where it helps most: for millions of tiles.
Every answer comes with the dual bound, so its gap to the optimum is certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitwright.passes.allocate.dual import Dual, Infeasible, maximise
from bitwright.passes.allocate.milp import choose
from bitwright.passes.allocate.problem import Problem, Vertex

Doubles = npt.NDArray[np.float64]
Method = Literal["exact", "columns", "greedy"]

SPREAD = tuple(
    float(f) for f in (0.5, 0.7, 0.8, 0.88, 0.93, 0.96, 0.98, 0.99, 1.01, 1.02, 1.04, 1.08, 1.14, 1.3, 1.6, 2)
)
"""Shares of the best prices at which more cuts of sites into runs are collected."""

COLUMNS_GAP = 1e-4
BISECTIONS = 40


@dataclass(frozen=True)
class Solution:
    """A solution within the limits; ``bound``: no other has a smaller objective than that."""

    vertex: Vertex
    bound: float
    prices: Mapping[int, float]


def solve(problem: Problem, objective: int, limits: Mapping[int, float], method: Method) -> Solution | Infeasible:
    """Minimise a resource under limits on others.

    Args:
        method: ``exact`` needs problems of one run and one tile for each site. Under several limits it is so within
            ``COLUMNS_GAP``: 211 matrices under two kept the integer program busy for minutes.
    """
    dual = maximise(problem, objective, limits)
    if isinstance(dual, Infeasible):
        return dual
    if _meets(dual.vertices[-1], limits) and not any(dual.prices.values()):
        return Solution(dual.vertices[-1], dual.bound, dual.prices)
    if method == "greedy":
        vertex = _greedy(problem, objective, limits, dual)
        return Solution(vertex, dual.bound, dual.prices)
    vertices = [] if method == "exact" else [*dual.vertices, *_around(problem, objective, dual)]
    exact = method == "exact" and len(limits) == 1
    picked = _combined(problem, vertices, objective, limits, 0.0 if exact else COLUMNS_GAP)
    if picked is None:
        return Infeasible({resource: 1 / len(limits) for resource in limits})
    return Solution(picked, dual.bound, dual.prices)


def _meets(vertex: Vertex, limits: Mapping[int, float]) -> bool:
    return all(vertex.uses[resource] <= limit for resource, limit in limits.items())


def _weights(problem: Problem, objective: int, prices: Mapping[int, float], factor: float) -> Doubles:
    weights = np.zeros(len(problem.fixed))
    weights[objective] = 1.0
    for resource, price in prices.items():
        weights[resource] += factor * price
    return weights


def _around(problem: Problem, objective: int, dual: Dual) -> list[Vertex]:
    return [problem.best(_weights(problem, objective, dual.prices, factor)) for factor in SPREAD]


def _combined(
    problem: Problem, vertices: list[Vertex], objective: int, limits: Mapping[int, float], gap: float
) -> Vertex | None:
    """The best combination of the sites' cuts that ``vertices`` hold; of all choices if there are none."""
    alternatives, places = [], []
    for number, block in enumerate(problem.blocks):
        for site in range(block.uses.shape[1]):
            if vertices:
                cuts = np.stack([vertex.choices[number][site] for vertex in vertices])
                uses = np.stack([vertex.by_site[number][:, site] for vertex in vertices], axis=1)
                _, first = np.unique(cuts, axis=0, return_index=True)
                cuts, uses = cuts[np.sort(first)], uses[:, np.sort(first)]
            else:
                cuts = np.arange(block.uses.shape[3])[:, None]
                uses = block.uses[:, site, 0] + block.starts[:, site]
            alternatives.append(uses)
            places.append((number, site, cuts))
    picked = choose(alternatives, problem.fixed, objective, limits, gap)
    if picked is None:
        return None
    choices = [np.zeros(block.uses.shape[1:3], np.int64) for block in problem.blocks]
    for (number, site, cuts), pick in zip(places, picked, strict=True):
        choices[number][site] = cuts[pick]
    return problem.vertex(choices)


def _greedy(problem: Problem, objective: int, limits: Mapping[int, float], dual: Dual) -> Vertex:
    """A solution within the limits near the dual's; for one block of one-tile sites without run costs."""
    low, high, vertex = 1.0, 1.0, problem.best(_weights(problem, objective, dual.prices, 1.0))
    while not _meets(vertex, limits):
        low, high = high, 2 * high
        vertex = problem.best(_weights(problem, objective, dual.prices, high))
    for _ in range(BISECTIONS if high > 1 else 0):
        middle = (low + high) / 2
        tried = problem.best(_weights(problem, objective, dual.prices, middle))
        if _meets(tried, limits):
            high, vertex = middle, tried
        else:
            low = middle
        if high - low < 1e-9:
            break
    return _filled(problem, vertex, objective, limits, _weights(problem, objective, dual.prices, 0.0))


def _filled(problem: Problem, vertex: Vertex, objective: int, limits: Mapping[int, float], weights: Doubles) -> Vertex:
    """Spend what the limits leave on single changes, the most saved for its share of what is left first."""
    choices = [chosen.copy() for chosen in vertex.choices]
    for number, block in enumerate(problem.blocks):
        room = {r: limit - vertex.uses[r] for r, limit in limits.items()}
        flat = block.uses[:, :, 0]
        now = np.take_along_axis(flat, choices[number][None], 2)
        saved = -np.tensordot(weights, flat - now, 1)
        share = np.zeros(saved.shape)
        for resource, left in room.items():
            share = np.maximum(share, (flat[resource] - now[resource]) / max(left, 1e-300))
        efficiency = np.where((saved > 0) & (share <= 1), saved / np.maximum(share, 1e-300), 0)
        pick = efficiency.argmax(axis=1)
        value = np.take_along_axis(efficiency, pick[:, None], 1)[:, 0]
        order = np.argsort(-value, kind="stable")
        order = order[value[order] > 0]
        change = (np.take_along_axis(flat, pick[None, :, None], 2) - now)[:, order, 0]
        taken = np.ones(len(order), bool)
        for resource, left in room.items():
            taken &= np.cumsum(np.maximum(change[resource], 0)) <= left
        choices[number][order[taken], 0] = pick[order[taken]]
        vertex = problem.vertex(choices)
    return vertex
