"""The allocation pass as strategies: a knapsack over matrices or row tiles, with caches and activations, with time."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from bitwright.allocation import Allocation, Budgets
from bitwright.budgets.allocating import Settings, allocate
from bitwright.errors import UsageError
from bitwright.plan import Plan
from bitwright.study.problem import Problem
from bitwright.study.restricted import float_caches

SLOWER = 1.02
"""Times the decode time of the plan of weights alone that the joint plan may take for its 16-bit activations."""

WORSE = 1.1
"""Times the predicted divergence of the plan of least divergence that a plan of least time may have."""


def knapsack(problem: Problem, strategy: str, grain: Literal["tile", "matrix"]) -> Plan:
    """Weights only, bytes only: activations have 8 bits, caches 16."""
    return _named(_weights_only(problem, grain), strategy)


def joint(problem: Problem, strategy: str) -> Plan:
    """Weights by row tile, activations, K and V together.

    Bytes do not tell 8-bit from 16-bit activations, time does: without latencies activations have 8 bits.
    """
    profile, budgets = problem.costs.profile, problem.budgets
    if problem.latencies is None:
        return _named(allocate(profile, budgets, Settings(activations=(8,))), strategy)
    alone = _weights_only(problem, "tile").predicted["decode_ms"]
    settings = Settings(activations=(8, 16), latencies=problem.latencies)
    return _named(allocate(profile, replace(budgets, max_decode_ms=SLOWER * alone), settings), strategy)


def fastest(problem: Problem, strategy: str, grain: Literal["tile", "matrix"]) -> Plan:
    """Least decode time within the bytes, at hardly more divergence than the plan of least divergence.

    Raises:
        UsageError: nothing says how long anything takes.
    """
    if problem.latencies is None:
        raise UsageError(
            f"{strategy} needs latencies of {problem.costs.profile.header.target_name}",
            remedy="measure them with `bitwright latency MODEL --target ...` first, or leave the strategy out",
        )
    least = _weights_only(problem, grain).predicted["kl"]
    budgets = replace(problem.budgets, max_kld=WORSE * least, minimise="decode_ms")
    settings = Settings(grain=grain, activations=(8,), latencies=problem.latencies)
    return _named(allocate(float_caches(problem.costs.profile), budgets, settings), strategy)


def _weights_only(problem: Problem, grain: Literal["tile", "matrix"]) -> Allocation:
    settings = Settings(grain=grain, activations=(8,), latencies=problem.latencies)
    budgets: Budgets = problem.budgets
    return allocate(float_caches(problem.costs.profile), budgets, settings)


def _named(allocation: Allocation, strategy: str) -> Plan:
    plan = allocation.plan
    return replace(plan, notes={**plan.notes, "strategy": strategy})
