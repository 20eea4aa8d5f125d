"""The strategies that come with bitwright, in the order of tables: importing this module registers them.

Another is added by a module that calls ``register``, imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bitwright.plan import Plan
from bitwright.study import two_level as _two_level
from bitwright.study import uniform as _uniform
from bitwright.study.greedy import greedy
from bitwright.study.knapsack import fastest, joint, knapsack
from bitwright.study.strategy import STRATEGIES, Coordinates, Strategy, chosen, register
from bitwright.study.threshold import threshold

__all__ = ["METRICS", "STRATEGIES", "chosen"]

METRICS = ("fisher", "output_mse", "hessian_diagonal", "fisher_trace", "first_order", "linearity", "forward_kl")
"""Of the profiles that strategies solve."""

_SOLVERS: dict[str, tuple[str, str, Callable[..., Plan]]] = {
    "knapsack": ("knapsack over whole matrices", "knapsack", partial(knapsack, grain="matrix")),
    "greedy": ("greedy marginal gain per byte", "greedy marginal gain", greedy),
    "threshold": ("the smallest scheme below a bound on the loss per weight", "statistic + threshold", threshold),
}

assert _uniform and _two_level
for _metric in METRICS:
    for _solver, (_about, _allocation, _solve) in _SOLVERS.items():
        _name = f"{_solver}-{_metric.replace('_', '-')}"
        register(
            Strategy(
                _name,
                f"{_about}, by {_metric}",
                Coordinates("W", "MPW+UPA", "matrix", f"{_allocation}: {_metric}"),
                partial(_solve, strategy=_name),
                _metric,
            )
        )

register(
    Strategy(
        "tile",
        "knapsack over row tiles, weights only",
        Coordinates("W", "MPW+UPA", "tile", "knapsack: fisher"),
        partial(knapsack, strategy="tile", grain="tile"),
    )
)
register(
    Strategy(
        "joint",
        "knapsack over row tiles, activations, K and V caches together",
        Coordinates("W+A+KV", "MPW+MPA+MPKV", "tile", "knapsack: fisher"),
        partial(joint, strategy="joint"),
    )
)
register(
    Strategy(
        "fastest",
        "row tiles of least measured decode time, at 1.1 times the least divergence",
        Coordinates("W", "MPW+UPA", "tile", "knapsack: fisher, latency"),
        partial(fastest, strategy="fastest", grain="tile"),
    )
)
register(
    Strategy(
        "fastest-matrix",
        "whole matrices of least measured decode time, at 1.1 times the least divergence",
        Coordinates("W", "MPW+UPA", "matrix", "knapsack: fisher, latency"),
        partial(fastest, strategy="fastest-matrix", grain="matrix"),
    )
)
