"""NumPy oracle of the linear kernels: integer parts exact, sums in double precision. Imports no TVM."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TOLERANCE = {
    "quantize_activation": 0.0,  # bit-exact
    "embedding": 0.0,  # one rounding: (code - zero) is exact, times a half-precision scale fits single precision
    "linear_a8": 2e-6,  # exact within a group; then a float32 sum over groups
    "linear_a16": 5e-6,  # float32 sums over groups of sum(code * x) - zero * sum(x)
    "linear_float": 2e-6,  # a float32 sum over the inputs
}
"""Largest |kernel - oracle| of one output, relative to the sum of the magnitudes of its terms (``magnitude``)."""

SMALLEST_ABSMAX = np.float32(2.0**-100)
"""A group whose largest magnitude is below this counts as zero (its reciprocal would overflow single precision)."""


def quantize_activation(x: Array, group: int) -> tuple[Array, Array, Array]:
    """Symmetric dynamic int8: scale = absmax / 127, round half to even, per token and group.

    Args:
        x: f32 [n, inputs]; ``group`` divides inputs.

    Returns:
        x8 i8 [n, inputs], scale f32 [n, groups], sum i32 [n, groups] of a group's x8. A zero group has scale 0.
    """
    grouped = x.astype(np.float32, copy=False).reshape(x.shape[0], -1, group)
    absmax = np.abs(grouped).max(axis=2)
    live = absmax >= SMALLEST_ABSMAX
    inverse = np.where(live, np.float32(127) / np.where(live, absmax, np.float32(1)), np.float32(0))
    scale = np.where(live, absmax / np.float32(127), np.float32(0)).astype(np.float32)
    x8 = np.rint(grouped * inverse[..., None]).astype(np.int8)
    return x8.reshape(x.shape), scale, x8.sum(axis=2, dtype=np.int32)


def linear_a8(x8: Array, scale: Array, codes: Array, scales: Array, zeros: Array, bias: Array | None = None) -> Array:
    """Linear layer on quantized activations.

    Args:
        x8: i8 [n, K]; scale: f32 [n, G groups].
        codes: u8 [N, K], or integers that were looked up; scales: f16 or f32 [N, groups].
        zeros: integers [N, groups]: 2**(bits-1) if symmetric, 0 if looked up.
        bias: f32 [N] or None.

    Returns:
        f32 [n, N].
    """
    tokens, groups = scale.shape
    outputs = codes.shape[0]
    centred = codes.reshape(outputs, groups, -1).astype(np.int64) - zeros.astype(np.int64)[..., None]
    exact = np.einsum("tgk,ogk->tgo", x8.reshape(tokens, groups, -1).astype(np.int64), centred)
    y: Array = np.einsum("tgo,tg,og->to", exact.astype(np.float64), scale.astype(np.float64), scales.astype(np.float64))
    result: Array = (y if bias is None else y + bias).astype(np.float32)
    return result


def look_up(codes: Array, codebook: Array) -> Array:
    """The integers that codes stand for: codes u8 [N, K], codebook int8 [2**bits] -> int64 [N, K], zero point 0."""
    values: Array = np.take(codebook.astype(np.int64), codes)
    return values


def linear(x: Array, weights: Array, bias: Array | None = None) -> Array:
    """Linear layer on float activations: x f32 [n, K], weights f32 [N, K] (dequantized if packed) -> f32 [n, N]."""
    y = x.astype(np.float64) @ weights.astype(np.float64).T
    return (y if bias is None else y + bias).astype(np.float32)


def magnitude(x: Array, weights: Array, bias: Array | None = None) -> Array:
    """The sum of the magnitudes of each output's terms, which bounds what rounding can do: f64 [n, N]."""
    y: Array = np.abs(x.astype(np.float64)) @ np.abs(weights.astype(np.float64)).T
    return y if bias is None else y + np.abs(bias)


def embedding(ids: Array, weights: Array) -> Array:
    """Rows of the (dequantized) table: ids i64 [n], weights f32 [vocabulary, K] -> f32 [n, K]."""
    rows: Array = weights[ids]
    return rows
