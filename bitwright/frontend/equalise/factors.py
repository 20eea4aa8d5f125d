"""The factors that let readers share the scales of their groups best.

Rounding the weights W_ij s_j of a group g with one scale makes errors in proportion to the group's magnitude, and an
error in column j costs c_j / s_j**2. With the root mean square as the magnitude, the output error of the readers is

    sum over outputs i and groups g of  (sum_{k in g} W_ik**2 s_k**2) (sum_{j in g} c_j / s_j**2).

By Cauchy-Schwarz (in every group, summed over outputs) that is least when s_j**2 is in proportion to
sqrt(c_j / mean_i W_ij**2). With c_j = H_jj it is the rule of SmoothQuant (Xiao et al. 2022, eq. 4, alpha = 1/2) and AWQ
(Lin et al. 2023, eq. 5) for second moments, in closed form instead of by search. Quantizers with error feedback make up
for a column's error in the others, so that c_j = 1 / (H^-1)_jj describes them better: see the objective's
``conditional``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

FLOOR = 1e-6
"""Least cost and mean W_ij**2, as a share of their means over the channels: dead channels get finite factors."""


def best_factors(cost: Doubles, magnitude: Doubles) -> Floats:
    """s float32 [channels], of geometric mean 1.

    Args:
        cost: what an error in a channel of the readers' input costs, [channels].
        magnitude: the mean over the readers' outputs of W_ij**2, [channels].
    """
    ratio = _floored(cost) / _floored(magnitude)
    logs = np.log(ratio) / 4
    factors: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def _floored(values: Doubles) -> Doubles:
    mean = float(values.mean())
    floored: Doubles = np.maximum(values, FLOOR * mean) if mean > 0 else np.ones_like(values)
    return floored
