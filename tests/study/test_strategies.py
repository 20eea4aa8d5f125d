"""Strategies on losses whose best plans can be derived or enumerated."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from bitwright.allocation import Budgets
from bitwright.budgets.storage import cache_bytes_per_token, weights_file_bytes
from bitwright.errors import InfeasibleError, UsageError
from bitwright.plan import Plan, parse_site_scheme
from bitwright.plans.costs import Costs
from bitwright.plans.diff import total
from bitwright.scheme import CacheScheme
from bitwright.study.problem import Problem, Schemes
from bitwright.study.registered import STRATEGIES, chosen
from bitwright.study.restricted import float_caches, retargeted
from bitwright.study.strategy import register
from tests.additive_latencies import AdditiveLatencies
from tests.small_profile import write_profile

BUDGETS = (26_000, 34_000, 45_000)
WEIGHTS_ONLY = ("uniform", "two-level", "knapsack-fisher", "greedy-fisher", "threshold-fisher", "tile")


def problem_at(folder: Path, budget: int, context: int | None = None) -> Problem:
    profile = retargeted(write_profile(folder), "avx512vnni")

    def size(schemes: Schemes) -> int:
        cached = cache_bytes_per_token(profile.header, schemes) * (context or 0)
        return weights_file_bytes(profile.header, schemes, context) + cached

    return Problem(Costs(profile, context), Budgets(max_bytes=budget, context=context), size)


def solved(name: str, problem: Problem) -> Plan:
    return STRATEGIES[name].solve(problem)


def loss(problem: Problem, plan: Plan) -> float:
    return total(problem.costs.plan(plan).values())["kl"]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_a_plan_fits_and_says_what_it_is(tmp_path: Path, name: str, budget: int) -> None:
    problem = problem_at(tmp_path, budget)
    plan = solved(name, problem)
    plan.check_sites(problem.sites)
    assert problem.size(plan.schemes) == plan.notes["bytes"] <= budget
    assert plan.notes["strategy"] == name and plan.notes["metric"] == "fisher"
    assert plan.notes["predicted"]["kl"] == pytest.approx(loss(problem, plan))
    assert solved(name, problem).to_json() == plan.to_json()
    assert all(s.bits == 16 for s in plan.schemes.values() if isinstance(s, CacheScheme))
    assert "a16" not in plan.to_json()


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_knapsack_is_no_worse_than_the_others(tmp_path: Path, budget: int) -> None:
    problem = problem_at(tmp_path, budget)
    losses = {name: loss(problem, solved(name, problem)) for name in WEIGHTS_ONLY}
    matrix = [losses[name] for name in WEIGHTS_ONLY if name not in ("tile", "knapsack-fisher")]
    assert losses["knapsack-fisher"] <= min(matrix) * (1 + 1e-9)
    assert losses["tile"] <= losses["knapsack-fisher"] * (1 + 1e-3)


def test_uniform_is_the_best_of_all_pairs(tmp_path: Path) -> None:
    problem = problem_at(tmp_path, BUDGETS[1])
    names = [site.name for site in problem.sites if site.weight]
    best = float("inf")
    for linear, table in product([f"u{b}g32a8" for b in (2, 3, 4, 5, 6, 8)], repeat=2):
        schemes = {site.name: problem.menu(site.name)[0].scheme for site in problem.sites if not site.weight}
        schemes |= {site: parse_site_scheme(table if site == "table" else linear) for site in names}
        if problem.fits(schemes):
            best = min(best, total(problem.costs.of(site, schemes[site]) for site in names)["kl"])
    plan = solved("uniform", problem)
    assert total(problem.costs.of(site, plan.schemes[site]) for site in names)["kl"] == pytest.approx(best)
    assert len({plan.schemes[site].name for site in names if site != "table"}) == 1


def test_two_levels_go_to_the_most_sensitive(tmp_path: Path) -> None:
    problem = problem_at(tmp_path, BUDGETS[1])
    plan = solved("two-level", problem)
    matrices = [site.name for site in problem.sites if site.weight]
    by_scheme: dict[str, list[float]] = {}
    for site in matrices:
        importance = problem.costs.of(site, parse_site_scheme("u2g32a8")).uses["kl"]
        by_scheme.setdefault(plan.schemes[site].name, []).append(importance)
    low, high = sorted(by_scheme.values(), key=max)
    assert max(low) <= min(high)


def test_a_threshold_bounds_the_loss_per_weight(tmp_path: Path) -> None:
    problem = problem_at(tmp_path, BUDGETS[1])
    plan = solved("threshold-fisher", problem)
    shape = {site.name: site.shape for site in problem.sites if site.weight}

    def statistic(site: str, scheme: str) -> float:
        return problem.costs.of(site, parse_site_scheme(scheme)).uses["kl"] / (shape[site][0] * shape[site][1])

    bound = max(statistic(site, plan.schemes[site].name) for site in shape)
    for site in shape:
        menu = [
            d for d in problem.menu(site) if d.uses["bytes"] < problem.costs.of(site, plan.schemes[site]).uses["bytes"]
        ]
        assert all(statistic(site, d.scheme.name) > bound for d in menu)


@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_a_budget_below_the_smallest_is_infeasible(tmp_path: Path, name: str) -> None:
    with pytest.raises(InfeasibleError):
        solved(name, problem_at(tmp_path, 15_000))


def test_a_joint_plan_trades_caches_for_weights(tmp_path: Path) -> None:
    problem = problem_at(tmp_path, 60_000, context=64)
    weights, together = solved("tile", problem), solved("joint", problem)
    assert problem.fits(weights.schemes) and problem.fits(together.schemes)
    assert any(s.bits < 16 for s in together.schemes.values() if isinstance(s, CacheScheme))
    assert loss(problem, together) < loss(problem, weights)


class Slow16(AdditiveLatencies):
    """Two units for 16-bit activations, one for 8; narrow weights take longer on this imaginary machine."""

    decode_fixed = 1.0

    def decode(self, site: object, scheme: object) -> float:
        if isinstance(scheme, CacheScheme):
            return 0.0
        return (2.0 if "a16" in str(scheme) else 1.0) * (3.0 if str(scheme).startswith("u3") else 1.0)


def test_the_fastest_plan_avoids_what_is_slow(tmp_path: Path) -> None:
    from dataclasses import replace

    # At this budget the plan of least divergence uses three bits.
    problem = problem_at(tmp_path, 30_000)
    timed = replace(problem, latencies=Slow16())
    uniform = solved("uniform", timed)
    expected = sum(Slow16().decode(None, scheme) for scheme in uniform.schemes.values())
    assert uniform.notes["predicted"]["decode_ms"] == pytest.approx(1.0 + expected)
    least, fast = solved("tile", timed), solved("fastest", timed)
    assert fast.notes["predicted"]["decode_ms"] < least.notes["predicted"]["decode_ms"]
    assert fast.notes["predicted"]["kl"] <= 1.1 * least.notes["predicted"]["kl"] * (1 + 1e-9)
    assert problem.fits(fast.schemes)


def test_time_that_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fastest needs latencies of avx512vnni"):
        solved("fastest", problem_at(tmp_path, BUDGETS[1]))


def test_restrictions_add_up(tmp_path: Path) -> None:
    profile = retargeted(write_profile(tmp_path), "generic")
    assert profile.header.target_name == "generic" and profile.header.isa != "avx512vnni"
    assert list(float_caches(profile).scores("layer.0.k_cache").caches) == ["k16"]
    assert float_caches(profile).scores("table").weights.keys() == profile.scores("table").weights.keys()


def test_strategies_are_found_by_name_and_pattern() -> None:
    assert [s.name for s in chosen(["tile", "uniform"])] == ["uniform", "tile"]
    assert len(chosen(["greedy-*"])) == 7
    with pytest.raises(UsageError, match="'luck' is no strategy"):
        chosen(["luck"])
    with pytest.raises(UsageError, match="there are two strategies tile"):
        register(STRATEGIES["tile"])


def test_every_strategy_is_placed_in_the_taxonomy() -> None:
    for strategy in STRATEGIES.values():
        assert strategy.coordinates.granularity in ("model", "matrix", "tile")
        assert set(strategy.coordinates.tensors.split("+")) <= {"W", "A", "KV"}
        assert strategy.about and strategy.name == strategy.name.lower()


def test_a_study_needs_bytes(tmp_path: Path) -> None:
    problem = problem_at(tmp_path, BUDGETS[0])
    with pytest.raises(UsageError, match="plans of equal bytes"):
        Problem(problem.costs, Budgets(avg_bits=4), problem.size)
