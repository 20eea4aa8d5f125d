"""Exact choice among few alternatives of each site: an integer program, solved by HiGHS without time limit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

Doubles = npt.NDArray[np.float64]


def choose(
    alternatives: Sequence[Doubles], fixed: Doubles, objective: int, limits: Mapping[int, float], gap: float
) -> list[int] | None:
    """The number of the alternative of each site; None if no combination meets the limits.

    Args:
        alternatives: of each site, float64 [resources, alternatives].
        fixed: float64 [resources], used in any case.
        limits: resource number to its upper bound.
        gap: relative difference to the optimum at which the search may end; 0 for none.
    """
    counts = [site.shape[1] for site in alternatives]
    uses = np.concatenate(alternatives, axis=1)
    site = np.repeat(np.arange(len(counts)), counts)
    one_each = sparse.csr_array((np.ones(len(site)), (site, np.arange(len(site)))))
    scale = max(float(np.abs(uses[objective]).max()), 1e-300)
    constraints = [LinearConstraint(one_each, 1, 1)]
    for resource, limit in limits.items():
        constraints.append(LinearConstraint(uses[resource][None] / limit, -np.inf, 1 - fixed[resource] / limit))
    with _silent():
        found = milp(
            uses[objective] / scale,
            integrality=np.ones(len(site)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": gap, "presolve": True},
        )
    if found.x is None:
        return None
    starts = np.cumsum([0, *counts[:-1]])
    return [int(found.x[start : start + count].argmax()) for start, count in zip(starts, counts, strict=True)]


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS may write to the process's stdout, which belongs to results."""
    sys.stdout.flush()
    kept = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
