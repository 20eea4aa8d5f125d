"""A threshold on a statistic: every site gets its smallest scheme that loses less per weight than a common bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitwright.allocation import Decision
from bitwright.plan import Plan
from bitwright.runs import Scheme
from bitwright.study.problem import Problem


def threshold(problem: Problem, strategy: str) -> Plan:
    """The lowest bound on the loss per weight whose plan fits.

    Raises:
        InfeasibleError: the smallest of everything is too large.
    """
    menus = problem.menus()
    problem.check_possible(menus)
    bounds = sorted({_statistic(problem, d) for menu in menus.values() for d in menu}, reverse=True)
    # Plans grow as the bound falls: the last that fits is found by halving. The first is the smallest of everything.
    fits, fails = 0, len(bounds)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if problem.fits(_plan(problem, menus, bounds[middle])):
            fits = middle
        else:
            fails = middle
    return problem.plan(_plan(problem, menus, bounds[fits]), strategy)


def _plan(problem: Problem, menus: Mapping[str, Sequence[Decision]], bound: float) -> dict[str, Scheme]:
    """The smallest scheme within the bound, or the one that loses least where none is."""
    return {
        site: next(
            (d.scheme for d in menu if _statistic(problem, d) <= bound), min(menu, key=lambda d: d.uses["kl"]).scheme
        )
        for site, menu in menus.items()
    }


def _statistic(problem: Problem, decision: Decision) -> float:
    shape = problem.costs.profile.header.site(decision.site).shape
    return decision.uses["kl"] / (shape[0] * shape[1])
