"""Solutions within limits, against trying everything, and bounds that hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.passes.allocate.dual import Infeasible
from bitwright.passes.allocate.problem import Block, Problem
from bitwright.passes.allocate.solve import solve

SITES = 4


def random_problem(seed: int, tiles: int, max_runs: int, resources: int = 3) -> Problem:
    random = np.random.default_rng(seed)
    uses = random.random((resources, SITES, tiles, 3))
    uses[0] = -np.sort(-uses[0], axis=2)  # dearer choices lose less
    uses[1:] = np.sort(uses[1:], axis=3)
    starts = random.random((resources, SITES, 3)) / 10
    return Problem((Block(tuple(range(SITES)), uses, starts, max_runs),), np.zeros(resources))


def brute_force(problem: Problem, limits: dict[int, float]) -> float | None:
    block = problem.blocks[0]
    sites = []
    for site in range(SITES):
        options = []
        for chosen in itertools.product(range(3), repeat=block.uses.shape[2]):
            if sum(a != b for a, b in itertools.pairwise(chosen)) < block.max_runs:
                uses = sum(block.uses[:, site, i, k] for i, k in enumerate(chosen))
                begins = [k for i, k in enumerate(chosen) if i == 0 or chosen[i - 1] != k]
                options.append(uses + sum(block.starts[:, site, k] for k in begins))
        sites.append(options)
    totals = np.array([sum(parts) for parts in itertools.product(*sites)])
    meets = np.all([totals[:, r] <= limit for r, limit in limits.items()], axis=0)
    return float(totals[meets, 0].min()) if meets.any() else None


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.5, 3.5), st.floats(0.5, 3.5))
def test_at_matrix_grain_it_is_the_optimum(seed: int, first: float, second: float) -> None:
    problem, limits = random_problem(seed, 1, 1), {1: first, 2: second}
    best, found = brute_force(problem, limits), solve(problem, 0, limits, "exact")
    if best is None or isinstance(found, Infeasible):
        assert best is None and isinstance(found, Infeasible)
        return
    assert found.vertex.uses[0] == pytest.approx(best, rel=1e-6)
    assert found.bound <= best + 1e-9
    assert all(found.vertex.uses[r] <= limit + 1e-9 for r, limit in limits.items())


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6), st.floats(2.5, 6))
def test_in_runs_it_meets_the_limit_and_its_bound_holds(seed: int, limit: float) -> None:
    problem, limits = random_problem(seed, 3, 2, 2), {1: limit}
    best, found = brute_force(problem, limits), solve(problem, 0, limits, "columns")
    if best is None:
        assert isinstance(found, Infeasible)
        return
    assert not isinstance(found, Infeasible)
    assert found.bound <= best + 1e-9 <= found.vertex.uses[0] + 2e-9
    assert found.vertex.uses[1] <= limit + 1e-9


@pytest.mark.parametrize("limits", [{1: 0.55}, {1: 0.55, 2: 0.56}])
def test_with_many_tiles_the_gap_is_below_a_thousandth(limits: dict[int, float]) -> None:
    random = np.random.default_rng(0)
    tiles, bits = 20_000, np.array([2.5, 3.5, 4.5, 6.5, 8.5])
    loss = random.lognormal(0, 1.5, (tiles, 1)) * 4.0**-bits * random.lognormal(0, 0.2, (tiles, 5))
    time = bits * random.uniform(0.9, 1.1, (tiles, 5))
    uses = np.stack([loss, np.broadcast_to(bits, loss.shape), time])[:, :, None, :]
    problem = Problem((Block(tuple(range(tiles)), uses, np.zeros((3, tiles, 5))),), np.zeros(3))
    scaled = {r: limit * tiles * 8 for r, limit in limits.items()}
    found = solve(problem, 0, scaled, "greedy")
    assert not isinstance(found, Infeasible)
    assert problem.variables == tiles
    assert all(found.vertex.uses[r] <= limit for r, limit in scaled.items())
    assert 0 <= found.vertex.uses[0] - found.bound <= 1e-3 * found.vertex.uses[0]


def test_a_limit_below_the_least_is_infeasible_and_named() -> None:
    found = solve(random_problem(0, 1, 1), 0, {1: 1e-3, 2: 10.0}, "exact")
    assert isinstance(found, Infeasible)
    assert found.shares[1] > 0


def test_it_writes_nothing_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    solve(random_problem(0, 1, 1), 0, {1: 2.0}, "exact")
    assert capfd.readouterr().out == ""
