"""One scheme for all linear layers and one for all tables: the best pair that fits."""

from __future__ import annotations

from bitwright.plan import Plan
from bitwright.plans.diff import total
from bitwright.runs import Scheme
from bitwright.scheme import LinearScheme
from bitwright.study.problem import Problem
from bitwright.study.strategy import Coordinates, Strategy, register


def uniform(problem: Problem) -> Plan:
    """The pair of schemes with the least predicted divergence; of equals the first by name."""
    linear = [site.name for site in problem.sites if site.kind == "linear"]
    tables = [site.name for site in problem.sites if site.kind == "table"]
    caches: dict[str, Scheme] = {
        site.name: problem.menu(site.name)[0].scheme for site in problem.sites if not site.weight
    }
    choices = []
    for of_linear in _common(problem, linear):
        for of_tables in _common(problem, tables):
            schemes = caches | dict.fromkeys(linear, of_linear) | dict.fromkeys(tables, of_tables)
            loss = total(problem.costs.of(site, schemes[site]) for site in linear + tables)["kl"]
            choices.append((loss, of_linear.name, of_tables.name, schemes))
    fitting = [choice for choice in choices if problem.fits(choice[-1])]
    if not fitting:
        raise problem.infeasible(min(problem.size(choice[-1]) for choice in choices))
    return problem.plan(min(fitting, key=lambda choice: choice[:3])[-1], "uniform")


def _common(problem: Problem, sites: list[str]) -> list[LinearScheme]:
    """Schemes that every one of the sites can have."""
    legal = [[d.scheme for d in problem.menu(site) if isinstance(d.scheme, LinearScheme)] for site in sites]
    return [scheme for scheme in legal[0] if all(scheme in others for others in legal[1:])]


register(
    Strategy(
        "uniform",
        "the best pair of one scheme for linear layers and one for tables",
        Coordinates("W", "uniform", "model", "fixed"),
        uniform,
    )
)
