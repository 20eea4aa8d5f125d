"""The best codebook of a matrix: int8 values that minimise the weighted squared error of its group-normalised weights.

With u = w / scale of the weight's group and h the importance of its input, a table of values v costs

    E = sum over weights of  h * scale**2 * (u - v[code])**2,   code = the nearest value.

Thresholds between integers are multiples of 1/2, so sums of h * scale**2 and of h * scale**2 * u over bins of width
1/2 say all about E. The table is its global minimum over all tables of int8 values (even ones for up to 4 bits: see
``WeightScheme.value_step``), found by dynamic programming over
the sorted values (J. D. Bruce, "Optimum quantization", MIT RLE report 429, 1965); the conditions of Lloyd and Max
hold there, up to the rounding of values to integers. Each round then replaces a group's scale by its least-squares
value sum(h w v) / sum(h v v), in half precision, where that lowers E, and searches the table again: E never rises. It
starts with the scales of rounding to nearest. Their uniform grid is one of the tables, so the result is never worse
(as long as no scale is below 2**-14, where half precision is coarser; the same holds for 8-bit codes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.passes.quantizers.rtn import divide, half
from bitwright.scheme import WeightScheme

LOWEST, HIGHEST = -128, 127
ROUNDS = 4
"""Searches for a table. On normally distributed weights four more would lower E by less than two percent."""

BLOCK_WEIGHTS = 1 << 17
"""Weights at work at a time, here and where scales are fitted: what is computed of them stays in cache, and a search of
scales on a codebook takes a third of the time."""

_BINS = 2 * (HIGHEST + 1 - LOWEST) + 1
BIN_MIDDLES = ((np.arange(_BINS) + 0.5) / 2 + LOWEST).astype(np.float32)
"""Every bin has one nearest value of any table: thresholds between integers are multiples of 1/2."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def best_codebook(
    weights: Floats, scheme: WeightScheme, importance: Floats | None = None, rounds: int = ROUNDS
) -> QuantizedMatrix:
    """Quantize float32 [outputs, inputs] to a codebook scheme.

    Args:
        importance: float32 [inputs], what a squared error of a weight counts (the mean square of its input); None: 1.

    Raises:
        UnsupportedError: a group's scale does not fit half precision.
    """
    outputs, inputs = weights.shape
    groups = scheme.groups(inputs)
    matrix = _Matrix(
        weights.reshape(outputs, groups, -1),
        np.ones((groups, inputs // groups), np.float32) if importance is None else importance.reshape(groups, -1),
    )
    scales = matrix.first_scales()
    values = best_values(*matrix.histogram(scales), 1 << scheme.bits, scheme.value_step)
    for _ in range(rounds - 1):
        scales = matrix.refitted(scales, values)
        values = best_values(*matrix.histogram(scales), 1 << scheme.bits, scheme.value_step)
    codes = np.concatenate([codes_of(u, values) for _, u in matrix.normalised(scales)])
    return QuantizedMatrix(codes.reshape(outputs, inputs), scales, None, values)


@dataclass(frozen=True)
class _Matrix:
    """Weights [outputs, groups, group] and the importance [groups, group] of their inputs, in blocks of rows."""

    grouped: Floats
    importance: Floats

    def _blocks(self) -> Iterator[slice]:
        outputs, groups, group = self.grouped.shape
        rows = max(BLOCK_WEIGHTS // (groups * group), 1)
        return (slice(start, min(start + rows, outputs)) for start in range(0, outputs, rows))

    def first_scales(self) -> npt.NDArray[np.float16]:
        """A group's weight of largest magnitude becomes the lowest value."""
        scales = []
        for rows in self._blocks():
            block = self.grouped[rows]
            index = np.abs(block).argmax(axis=2, keepdims=True)
            scales.append(half(np.take_along_axis(block, index, axis=2)[:, :, 0] / np.float32(LOWEST)))
        return np.concatenate(scales)

    def normalised(self, scales: npt.NDArray[np.float16]) -> Iterator[tuple[slice, Floats]]:
        for rows in self._blocks():
            yield rows, divide(self.grouped[rows], scales[rows])

    def histogram(self, scales: npt.NDArray[np.float16]) -> tuple[Doubles, Doubles]:
        """Sums of h * scale**2, and of that times u, over the bins."""
        mass, moment = np.zeros(_BINS), np.zeros(_BINS)
        for rows, u in self.normalised(scales):
            weight = self.importance * np.square(scales[rows].astype(np.float32))[:, :, None]
            bins = bins_of(u).ravel()
            mass += np.bincount(bins, weight.ravel(), _BINS)
            moment += np.bincount(bins, (weight * u).ravel(), _BINS)
        return mass, moment

    def refitted(self, scales: npt.NDArray[np.float16], values: npt.NDArray[np.int8]) -> npt.NDArray[np.float16]:
        """Least-squares scales for the codes that the present ones lead to, where they are better."""
        found = []
        for rows, u in self.normalised(scales):
            v = values.astype(np.float32)[codes_of(u, values)]
            weighted = v * self.importance
            product = np.einsum("ogk,ogk->og", weighted, self.grouped[rows])
            square = np.einsum("ogk,ogk->og", weighted, v)
            old = scales[rows].astype(np.float32)
            best = half(np.divide(product, square, out=old.copy(), where=square > 0))
            new = best.astype(np.float32)
            better = (new * new * square - 2 * new * product < old * old * square - 2 * old * product) & (new != 0)
            found.append(np.where(better, best, scales[rows]))
        return np.concatenate(found)


def bins_of(u: Floats) -> npt.NDArray[np.int64]:
    """Bin i holds (i / 2 + LOWEST) <= u < ((i + 1) / 2 + LOWEST); what lies outside is put into the ends."""
    bins = 2 * u
    np.floor(bins, out=bins)
    bins -= 2 * LOWEST
    np.clip(bins, 0, _BINS - 1, out=bins)
    return bins.astype(np.int64)


def codes_of(u: Floats, values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """The number of the nearest of the ascending ``values``."""
    thresholds = (values[1:].astype(np.float64) + values[:-1]) / 2
    nearest = np.searchsorted(thresholds, BIN_MIDDLES).astype(np.uint8)
    return nearest.take(bins_of(u), mode="clip")


def best_values(mass: Doubles, moment: Doubles, count: int, step: int = 1) -> npt.NDArray[np.int8]:
    """The ``count`` ascending int8 values, multiples of ``step``, of least cost for a histogram: an exact minimum."""
    levels = np.arange(LOWEST, HIGHEST + 1, step)
    mass_below, moment_below = (np.concatenate([[0.0], np.cumsum(sums)]) for sums in (mass, moment))
    at = 2 * (levels - LOWEST)

    def cost(value: npt.NDArray[np.int64], first: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> Doubles:
        """Of the bins from ``first`` to before ``end``, less the sum of their u**2."""
        masses, moments = mass_below[end] - mass_below[first], moment_below[end] - moment_below[first]
        total: Doubles = value * (value * masses - 2 * moments)
        return total

    lower, upper = levels[:, None], levels[None, :]
    middle = lower + upper - 2 * LOWEST
    between = cost(lower, at[:, None], middle) + cost(upper, middle, at[None, :])
    between[lower >= upper] = np.inf
    best = cost(levels, np.zeros_like(at), at)
    choices = []
    for _ in range(count - 1):
        totals = best[:, None] + between
        choices.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    index = int((best + cost(levels, at, np.full_like(at, _BINS))).argmin())
    chosen = [index]
    for previous in reversed(choices):
        index = int(previous[index])
        chosen.append(index)
    return levels[chosen[::-1]].astype(np.int8)
