"""Scales and zero points of groups by search: clip the extremes where that makes the weighted error smaller.

For a group of weights w with importances d, codes' numbers c and a scale s, the error sum d (w - s c)^2 is least at
s = sum(d w c) / sum(d c^2), where it is sum d w^2 - sum(d w c)^2 / sum(d c^2). Starting from round-to-nearest's scale
times a number of factors, the codes with the least such error are taken, and codes and scale are then improved in turn
(Lloyd 1982; llama.cpp searches its scales the same way).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitwright.passes.quantizers.codebook import BLOCK_WEIGHTS
from bitwright.passes.quantizers.grid import Floats, Grid, Integers, reciprocal
from bitwright.passes.quantizers.rtn import half, nearest_half

Halves = npt.NDArray[np.float16]

FACTORS = np.linspace(0.5, 1.05, 12, dtype=np.float32)
"""Shares of the range that are tried; at few bits the best cut off much of it."""

ALTERNATIONS = 2
TINY = np.float32(np.finfo(np.float32).tiny)


def fit_groups(weights: Floats, importance: Floats, grid: Grid) -> tuple[Halves, Floats | None]:
    """Scales float16 [m] and zero points float32 [m] (None if the grid has none) of m groups.

    Never worse, in the weighted error of rounding to nearest with them, than round-to-nearest's.

    Args:
        weights: float32 [inputs of a group, m]: inputs first.
        importance: float32, not negative, [inputs of a group, m] or [inputs of a group, 1].
    """
    size, count = weights.shape
    width = max(BLOCK_WEIGHTS // size, 1)
    found = []
    for start in range(0, count, width):
        part = slice(start, start + width)
        block = np.ascontiguousarray(weights[:, part])
        found.append(_fit(block, importance if importance.shape[1] == 1 else importance[:, part], grid))
    zeros = [zero for _, zero in found if zero is not None]
    return np.concatenate([scales for scales, _ in found]), np.concatenate(zeros) if zeros else None


def _fit(weights: Floats, importance: Floats, grid: Grid) -> tuple[Halves, Floats | None]:
    """The same of few groups."""
    starts: list[tuple[Floats, Floats | None]] = []
    if not isinstance(grid, Integers) or grid.symmetric:
        index = np.abs(weights).argmax(axis=0)[None]
        extreme = np.take_along_axis(weights, index, axis=0)[0]
        low, high = grid.ends
        starts = [(extreme * np.float32(factor / end), None) for end in (low, high) if end for factor in FACTORS]
        base = half(extreme / np.float32(low if abs(low) >= abs(high) else high))
        return _search(weights, importance, grid, (base, None), starts)
    bottom, top = np.minimum(weights.min(axis=0), 0), np.maximum(weights.max(axis=0), 0)
    base = half((top - bottom) / np.float32(grid.levels))
    zeros = _zero_points(bottom, base.astype(np.float32), grid)
    for factor in FACTORS:
        scales = base.astype(np.float32) * factor
        starts += [(scales, _zero_points(bottom * share, scales, grid)) for share in (factor, np.float32(1))]
    return _search(weights, importance, grid, (base, zeros), starts)


def _zero_points(bottom: Floats, scales: Floats, grid: Integers) -> Floats:
    result: Floats = np.clip(np.rint(-bottom * reciprocal(scales)), 0, grid.levels)
    return result


def _search(
    weights: Floats,
    importance: Floats,
    grid: Grid,
    nearest: tuple[Halves, Floats | None],
    starts: list[tuple[Floats, Floats | None]],
) -> tuple[Halves, Floats | None]:
    weighted = importance * weights
    groups = weights.shape[1]
    gain, scale = np.full(groups, -1, np.float32), np.zeros(groups, np.float32)
    zero = None if nearest[1] is None else np.zeros(groups, np.float32)
    for start, offset in starts:
        found, value = _closed_form(weights, weighted, importance, grid, start, offset)
        better = found > gain
        gain, scale = np.where(better, found, gain), np.where(better, value, scale)
        if zero is not None and offset is not None:
            zero = np.where(better, offset, zero)
    for _ in range(ALTERNATIONS):
        found, value = _closed_form(weights, weighted, importance, grid, scale, zero)
        scale = np.where(found > 0, value, scale)
    halves = nearest_half(scale)
    kept = _loss(weights, importance, grid, halves, zero) < _loss(weights, importance, grid, *nearest)
    chosen = None if zero is None or nearest[1] is None else np.where(kept, zero, nearest[1])
    return np.where(kept, halves, nearest[0]), chosen


def _closed_form(
    weights: Floats, weighted: Floats, importance: Floats, grid: Grid, scales: Floats, zeros: Floats | None
) -> tuple[Floats, Floats]:
    """By how much the best scale for the codes that ``scales`` give lowers the error, and that scale."""
    values = grid.nearest(weights * reciprocal(scales), zeros)
    product = np.einsum("ij,ij->j", weighted, values)
    squared = np.maximum(np.einsum("ij,ij,ij->j", np.broadcast_to(importance, values.shape), values, values), TINY)
    return product * product / squared, product / squared


def _loss(weights: Floats, importance: Floats, grid: Grid, scales: Halves, zeros: Floats | None) -> Floats:
    wide = scales.astype(np.float32)
    error = weights - grid.nearest(weights * reciprocal(wide), zeros) * wide
    error *= error
    error *= importance
    total: Floats = error.sum(axis=0)
    return total
