"""The factors that let readers share the scales of their groups best.

Rounding the weights W_ij s_j of a group g with one scale makes errors in proportion to the group's magnitude, and an
error in column j counts H_jj / s_j**2. With the root mean square as the magnitude, the output error of the readers is

    sum over outputs i and groups g of  (sum_{k in g} W_ik**2 s_k**2) (sum_{j in g} H_jj / s_j**2).

By Cauchy-Schwarz (in every group, summed over outputs) that is least when s_j**2 is in proportion to
sqrt(H_jj / mean_i W_ij**2). It is the rule of SmoothQuant (Xiao et al. 2022, eq. 4, alpha = 1/2) and AWQ (Lin et al.
2023, eq. 5) for second moments, in closed form instead of by search.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

FLOOR = 1e-6
"""Least H_jj and mean W_ij**2, as a share of their means over the channels: dead channels get finite factors."""


def best_factors(energy: Doubles, magnitude: Doubles) -> Floats:
    """s float32 [channels], of geometric mean 1.

    Args:
        energy: H_jj, the mean square of the readers' input, [channels].
        magnitude: the mean over the readers' outputs of W_ij**2, [channels].
    """
    ratio = _floored(energy) / _floored(magnitude)
    logs = np.log(ratio) / 4
    factors: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def bound(energy: Doubles, magnitude: Doubles, factors: Floats, group: int) -> float:
    """What :func:`best_factors` minimises, with groups of ``group`` channels."""
    square = np.square(factors.astype(np.float64))
    terms = (magnitude * square).reshape(-1, group).sum(axis=1) * (energy / square).reshape(-1, group).sum(axis=1)
    return float(terms.sum())


def _floored(values: Doubles) -> Doubles:
    mean = float(values.mean())
    floored: Doubles = np.maximum(values, FLOOR * mean) if mean > 0 else np.ones_like(values)
    return floored
