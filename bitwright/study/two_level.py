"""Two widths, a sorted list and a ratio: the most sensitive sites get the wider one, as many as fit.

The allocation of OpenVINO's NNCF and of many recipes.
"""

from __future__ import annotations

from itertools import permutations

from bitwright.errors import InfeasibleError
from bitwright.plan import Plan
from bitwright.plans.diff import total
from bitwright.runs import Scheme
from bitwright.scheme import LinearScheme
from bitwright.study.problem import Problem
from bitwright.study.strategy import Coordinates, Strategy, register


def two_level(problem: Problem) -> Plan:
    """Over all pairs of schemes that every matrix can have, the plan of least predicted divergence.

    Raises:
        InfeasibleError: the smallest scheme everywhere is too large.
    """
    menus = problem.menus()
    problem.check_possible(menus)
    matrices = [site.name for site in problem.sites if site.weight]
    common = [
        d.scheme for d in menus[matrices[0]] if all(d.scheme in {o.scheme for o in menus[site]} for site in matrices)
    ]
    fixed = {site: menu[0].scheme for site, menu in menus.items() if site not in matrices}
    found = []
    for low, high in permutations(common, 2):
        if problem.fits(fixed | dict.fromkeys(matrices, low)) and _wider(low, high, matrices[0], problem):
            schemes = _raised(problem, fixed | dict.fromkeys(matrices, low), matrices, high)
            loss = total(problem.costs.of(site, schemes[site]) for site in matrices)["kl"]
            found.append((loss, low.name, high.name, schemes))
    if not found:
        raise InfeasibleError(
            f"no two schemes of all matrices bracket {problem.max_bytes} bytes",
            limit=f"common schemes: {', '.join(map(str, common))}",
            remedy="profile more schemes",
        )
    return problem.plan(min(found, key=lambda choice: choice[:3])[-1], "two-level")


def _wider(low: Scheme, high: Scheme, site: str, problem: Problem) -> bool:
    assert isinstance(low, LinearScheme) and isinstance(high, LinearScheme)
    small, large = problem.costs.of(site, low).uses["bytes"], problem.costs.of(site, high).uses["bytes"]
    return small < large


def _raised(problem: Problem, schemes: dict[str, Scheme], matrices: list[str], high: Scheme) -> dict[str, Scheme]:
    """Give the wider scheme in the order of sensitivity: to a prefix of the list, as long as it fits."""
    ranked = sorted(matrices, key=lambda site: -problem.costs.of(site, schemes[site]).uses["kl"])
    fewest, most = 0, len(ranked)
    while fewest < most:
        middle = (fewest + most + 1) // 2
        fits = problem.fits(schemes | dict.fromkeys(ranked[:middle], high))
        fewest, most = (middle, most) if fits else (fewest, middle - 1)
    return schemes | dict.fromkeys(ranked[:fewest], high)


register(
    Strategy(
        "two-level",
        "sites sorted by sensitivity, the top fraction gets the wider of two schemes",
        Coordinates("W", "MPW+UPA", "matrix", "fixed ratio"),
        two_level,
    )
)
