"""Few runs at least cost, against trying all assignments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.passes.allocate.best_runs import best_runs


def cost_of(costs: np.ndarray, starts: np.ndarray, chosen: tuple[int, ...]) -> tuple[float, int]:
    runs = [chosen[0], *(b for a, b in itertools.pairwise(chosen) if a != b)]
    return sum(costs[i, k] for i, k in enumerate(chosen)) + sum(starts[k] for k in runs), len(runs)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_it_is_the_cheapest_of_all_assignments(seed: int, tiles: int, choices: int, max_runs: int) -> None:
    random = np.random.default_rng(seed)
    costs, starts = random.random((2, tiles, choices)), random.random((2, choices)) / 3
    found = best_runs(costs, starts, max_runs)
    for matrix in range(2):
        assignments = itertools.product(range(choices), repeat=tiles)
        priced = [cost_of(costs[matrix], starts[matrix], chosen) for chosen in assignments]
        best = min(cost for cost, runs in priced if runs <= max_runs)
        cost, runs = cost_of(costs[matrix], starts[matrix], tuple(found[matrix].tolist()))
        assert runs <= max_runs
        assert cost == pytest.approx(best, abs=1e-12)


def test_equal_costs_give_one_run_of_the_first_choice() -> None:
    assert best_runs(np.ones((1, 5, 3)), np.zeros((1, 3)), 4).tolist() == [[0] * 5]
