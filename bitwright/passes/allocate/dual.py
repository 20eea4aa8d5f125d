"""The Lagrangian dual of an allocation problem, maximised by cutting planes: a certified bound, prices and solutions.

With prices m >= 0 of the bounds, L(m) = min over solutions of objective + sum m_j (uses_j / limit_j - 1) is a lower
bound of the optimum (Fisher 1981, "The Lagrangian Relaxation Method"). Every solution found on the way is a plane above
the concave L; the prices to try next are where the lowest plane is highest (Kelley 1960). Each evaluation is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from bitwright.passes.allocate.problem import Problem, Vertex

Doubles = npt.NDArray[np.float64]

TOLERANCE = 1e-5
ITERATIONS = 100


@dataclass(frozen=True)
class Dual:
    """Attributes:
    bound: no solution within the limits has a smaller objective.
    prices: resource number to what one unit of it is worth, in units of the objective.
    vertices: solutions found, those for the best prices last.
    """

    bound: float
    prices: Mapping[int, float]
    vertices: tuple[Vertex, ...]


@dataclass(frozen=True)
class Infeasible:
    """No solution meets the limits: ``shares``, resource number to its part in the proof (summing to 1)."""

    shares: Mapping[int, float]


def maximise(problem: Problem, objective: int, limits: Mapping[int, float]) -> Dual | Infeasible:
    """Bound ``objective`` under ``limits`` (resource number to its positive upper bound).

    Infeasible is certain where it is returned: some weighted sum of the limits is below the least of all solutions.
    """
    resources, bounds = list(limits), np.array(list(limits.values()))

    def evaluate(unit: float, prices: Doubles) -> Vertex:
        weights = np.zeros(len(problem.fixed))
        weights[objective] = unit
        weights[resources] += prices / bounds
        return problem.best(weights)

    def excess(vertex: Vertex) -> Doubles:
        result: Doubles = vertex.uses[resources] / bounds - 1
        return result

    found = [evaluate(1.0, np.zeros(len(bounds)))]
    if not (excess(found[0]) > 0).any():
        return Dual(float(found[0].uses[objective]), dict.fromkeys(resources, 0.0), tuple(found))
    shares = np.full(len(bounds), 1 / len(bounds))
    for _ in range(ITERATIONS):
        found.append(evaluate(0.0, shares))
        if shares @ excess(found[-1]) > 1e-12:
            return Infeasible(dict(zip(resources, shares.tolist(), strict=True)))
        shares, highest = _highest(np.zeros(len(found)), np.array([excess(v) for v in found]), simplex=True)
        if highest <= 1e-12:
            break
    return _climb(found, objective, resources, bounds, evaluate, excess)


def _climb(
    found: list[Vertex],
    objective: int,
    resources: list[int],
    bounds: Doubles,
    evaluate: Callable[[float, Doubles], Vertex],
    excess: Callable[[Vertex], Doubles],
) -> Dual:
    """From cuts that bound the planes' highest point to the best prices."""
    best, at, last = -np.inf, np.zeros(len(bounds)), found[0]
    for _ in range(ITERATIONS):
        heights = np.array([vertex.uses[objective] for vertex in found])
        prices, highest = _highest(heights, np.array([excess(v) for v in found]), simplex=False)
        vertex = evaluate(1.0, prices)
        value = float(vertex.uses[objective] + prices @ excess(vertex))
        if value > best:
            best, at, last = value, prices, vertex
        found.append(vertex)
        if highest - best <= TOLERANCE * max(abs(best), 1e-12):
            break
    worth = dict(zip(resources, (at / bounds).tolist(), strict=True))
    return Dual(best, worth, (*(vertex for vertex in found if vertex is not last), last))


def _highest(heights: Doubles, slopes: Doubles, *, simplex: bool) -> tuple[Doubles, float]:
    """Where the lowest of the planes ``heights + slopes @ prices`` is highest: prices (on the simplex), and height."""
    count = slopes.shape[1]
    scale = max(float(np.abs(heights).max()), 1e-30) if not simplex else 1.0
    result = linprog(
        np.concatenate([np.zeros(count), [-1.0]]),
        A_ub=np.column_stack([-slopes, np.ones(len(slopes))]),
        b_ub=heights / scale,
        A_eq=np.concatenate([np.ones(count), [0.0]])[None] if simplex else None,
        b_eq=[1.0] if simplex else None,
        bounds=[*[(0, None)] * count, (None, None)],
        method="highs",
    )
    return np.maximum(result.x[:count], 0) * scale, float(result.x[count]) * scale
