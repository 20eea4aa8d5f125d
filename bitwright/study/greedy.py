"""Greedy marginal gain: from the smallest of everything, always the step that saves most per byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitwright.allocation import Decision
from bitwright.plan import Plan
from bitwright.plans.front import Step, hull, steps
from bitwright.runs import Scheme
from bitwright.study.problem import Problem


def greedy(problem: Problem, strategy: str) -> Plan:
    """Steps along the convex hull of every site, the best first; one that does not fit ends its site.

    Raises:
        InfeasibleError: the smallest of everything is too large.
    """
    menus = problem.menus()
    problem.check_possible(menus)
    hulls = {site: hull(menu, "bytes") for site, menu in menus.items()}
    ordered = steps(hulls, "bytes")
    taken = _most_that_fit(problem, hulls, ordered)
    schemes = _after(hulls, ordered[:taken])
    room = problem.max_bytes - problem.size(schemes)
    ended: set[str] = set()
    for step in ordered[taken:]:
        site = step.after.site
        tried = schemes | {site: step.after.scheme}
        large = step.after.uses["bytes"] - step.before.uses["bytes"] > room
        if site in ended or large or not problem.fits(tried):
            ended.add(site)
            continue
        schemes, room = tried, problem.max_bytes - problem.size(tried)
    return problem.plan(schemes, strategy)


def _most_that_fit(problem: Problem, hulls: Mapping[str, Sequence[Decision]], ordered: Sequence[Step]) -> int:
    """Number of first steps that fit together: found by halving, for every step makes a plan larger."""
    fewest, most = 0, len(ordered)
    while fewest < most:
        middle = (fewest + most + 1) // 2
        fits = problem.fits(_after(hulls, ordered[:middle]))
        fewest, most = (middle, most) if fits else (fewest, middle - 1)
    return fewest


def _after(hulls: Mapping[str, Sequence[Decision]], taken: Sequence[Step]) -> dict[str, Scheme]:
    return {site: menu[0].scheme for site, menu in hulls.items()} | {s.after.site: s.after.scheme for s in taken}
