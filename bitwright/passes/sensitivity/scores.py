"""Scores of one site: every scheme quantizes it for real, and a metric says what the errors cost, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bitwright.codegen.cache_layout import PackedCache
from bitwright.codegen.reference.cache import round_trip
from bitwright.codegen.reference.linear import activation_integers, quantize_activation
from bitwright.errors import UnsupportedError
from bitwright.keymap import HeadMap
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.passes.sensitivity.fisher import squared_effects
from bitwright.passes.sensitivity.metric import NATS, Evidence, Floats, Losses, Metric, row_blocks
from bitwright.scheme import CacheScheme, WeightScheme
from bitwright.sensitivity import TILE_ROWS, SiteScores
from bitwright.site import Site

ScoredQuantizer = Callable[[WeightScheme], QuantizedMatrix]


@dataclass(frozen=True)
class LookUps:
    """How a table's rows are read as embeddings.

    Attributes:
        frequency: float64 [rows], how often each row is expected, summing to 1: by the model's predictions of tokens,
            or every position as often as another.
        square: float64 [width], mean square of the gradient at looked-up rows.
    """

    frequency: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]

    def losses(self, error: Floats) -> Losses:
        """1/2 frequency times the sum over elements of (gradient * error)^2, float64 [vocabulary]."""
        result: Losses = np.empty(len(error))
        for rows in row_blocks(len(error)):
            result[rows] = np.square(error[rows], dtype=np.float64) @ self.square
        return 0.5 * self.frequency * result


def tile_sums(losses: Losses) -> Losses:
    """Sums over tiles of TILE_ROWS rows, float64 [tiles]."""
    sums: Losses = np.add.reduceat(losses, np.arange(0, len(losses), TILE_ROWS))
    return sums


def matrix_scores(
    site: Site,
    weights: Floats,
    schemes: Sequence[WeightScheme],
    quantizer: ScoredQuantizer,
    metric: Metric,
    evidence: Evidence | None,
    look_ups: LookUps | None,
    executor: Executor,
) -> SiteScores:
    """Scores of a matrix, float32 [outputs, inputs].

    Args:
        evidence: of its use in a product, None for a table that is only looked up.
        look_ups: of its use as a table, None for a linear layer.
        executor: computes the schemes; the result does not depend on its number of workers.
    """

    def weight(scheme: WeightScheme) -> Losses:
        error = quantizer(scheme).dequantize(scheme)
        error -= weights
        losses = np.zeros(len(weights)) if evidence is None else metric.losses(evidence, weights, error)
        if look_ups is not None and (evidence is None or metric.unit == NATS):
            losses = losses + look_ups.losses(error)
        return tile_sums(losses)

    losses = dict(zip([s.name for s in schemes], executor.map(weight, schemes), strict=True))
    if evidence is None:
        return SiteScores(site.name, losses)
    groups = sorted({scheme.group for scheme in schemes if not scheme.is_float})
    read = executor.map(lambda group: activation_losses(weights, evidence, group), groups)
    names = [f"a8g{group}" if group else "a8row" for group in groups]
    activations = dict(zip(names, read, strict=True))
    return SiteScores(site.name, losses, activations, peak=peak_of(evidence.inputs))


def activation_losses(weights: Floats, evidence: Evidence, group: int) -> Losses:
    """Loss of every tile when the input is read as int8 with a scale per token and ``group`` inputs (0: all)."""
    error = rounded(evidence.inputs, group) - evidence.inputs
    off = Evidence(error, evidence.gradients, evidence.divergence)
    return tile_sums(squared_effects(off, weights))


def peak_of(x: Floats) -> float:
    """Largest magnitude over the median one of what is not zero; 1 if all is zero."""
    magnitudes = np.abs(x[x != 0])
    return float(magnitudes.max() / np.median(magnitudes, overwrite_input=True)) if magnitudes.size else 1.0


def rounded(x: Floats, group: int) -> Floats:
    """What int8 activations stand for, float32 [tokens, inputs]."""
    width = group or x.shape[1]
    integers, scale, _ = quantize_activation(x, width)
    grouped = activation_integers(integers, x.shape[1]).reshape(len(x), -1, width).astype(np.float32)
    result: Floats = (grouped * scale[:, :, None]).reshape(x.shape)
    return result


def cache_scores(
    site: Site,
    values: Floats,
    gradients: Floats,
    schemes: Sequence[CacheScheme],
    head_map: HeadMap | None = None,
    window: int | None = None,
) -> SiteScores:
    """Scores of a K or V cache from what it holds and the gradients there, float32 [tokens, heads * head size].

    Args:
        head_map: of mapped schemes. Errors are independent between mapped elements, so these are what losses are summed
            over: x' = x B turns gradients g into g B^-T.
        window: tokens that one cache holds; None: all of them.
    """
    shape = (len(values), *site.shape)
    held, felt = values.reshape(shape), gradients.reshape(shape)
    windows = np.split(held, range(window or len(values), len(values), window or len(values)))

    def loss(scheme: CacheScheme) -> float:
        error, gradient = np.concatenate([stored(part, scheme, head_map) for part in windows]) - held, felt
        if scheme.mapped and head_map is not None:
            mixed = head_map.mixed(bool(scheme.low))
            error, gradient = by_head(error, mixed.forward), by_head(felt, mixed.inverse.transpose(0, 2, 1))
        off = (gradient * error).reshape(len(values), -1)
        return float(np.einsum("tw,tw->", off, off, dtype=np.float64)) / (2 * len(values))

    return SiteScores(site.name, caches={scheme.name: loss(scheme) for scheme in schemes})


def by_head(x: Floats, matrices: Floats) -> Floats:
    """x[tokens, heads, D] @ matrices[heads, D, D]"""
    result: Floats = np.ascontiguousarray((x.transpose(1, 0, 2) @ matrices).transpose(1, 0, 2))
    return result


def stored(values: Floats, scheme: CacheScheme, head_map: HeadMap | None = None) -> Floats:
    """What a cache gives back for float32 [tokens, heads, head size], the tokens from position 0 on.

    Args:
        head_map: of mapped schemes: what comes back comes through its inverse.

    Raises:
        UnsupportedError: a mapped scheme without its map.
    """
    if scheme.mapped:
        if head_map is None:
            raise UnsupportedError(
                f"{scheme} cannot be scored or simulated",
                limit="mapped caches need the maps that a profile or compiling calibrates",
                remedy=f"leave it out, or use {replace(scheme, mapped=False)}",
            )
        mixed = head_map.mixed(bool(scheme.low))
        back = _round_trip(by_head(values, mixed.forward) + mixed.shift, scheme)
        return by_head(back - mixed.shift, mixed.inverse)
    if scheme.bits == 32:
        return values
    if scheme.is_float:
        return values.astype(np.float16).astype(np.float32)
    return _round_trip(values, scheme)


def _round_trip(values: Floats, scheme: CacheScheme) -> Floats:
    tokens, heads, width = values.shape
    result: Floats = round_trip(values, PackedCache(scheme, heads, width, tokens))
    return result
