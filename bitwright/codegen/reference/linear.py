"""NumPy oracle of the linear kernels: integer parts exact, sums in double precision. Imports no TVM."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.codegen.quantized_rows import LARGEST, SCALE_BITS

Array = npt.NDArray[Any]

TOLERANCE = {
    "quantize_activation": 0.0,  # bit-exact
    "embedding": 0.0,  # one rounding: (code - zero) is exact, times a half-precision scale fits single precision
    "linear_packed": 2e-6,  # exact within a group (or rounded once or twice); then a float32 sum over groups
    "linear_float": 2e-6,  # a float32 sum over the inputs
}
"""Largest |kernel - oracle| of one output, relative to the sum of the magnitudes of its terms (``magnitude``)."""

SMALLEST_ABSMAX = np.float32(2.0**-100)
"""A group whose largest magnitude is below this counts as zero (its reciprocal would overflow single precision)."""


def quantize_activation(x: Array, group: int, terms: int = 1) -> tuple[Array, Array, Array]:
    """Symmetric dynamic quantization: scale = absmax / largest, rounded up to few bits (``SCALE_BITS``), per token and
    group; numbers / scale are rounded half to even.

    Args:
        x: f32 [n, inputs]; ``group`` divides inputs.
        terms: 1 for int8 (largest = 127), 2 for integers 128 * high + low (largest = 127 * 128, -64 <= low < 64).

    Returns:
        x8 i8 [n, terms * inputs] (high terms, then low ones), scale f32 [n, groups], sum i32 [n, groups] of a group's
        integers. A zero group has scale 0.
    """
    largest = np.float32(LARGEST[terms])
    grouped = x.astype(np.float32, copy=False).reshape(x.shape[0], -1, group)
    absmax = np.abs(grouped).max(axis=2)
    live = absmax >= SMALLEST_ABSMAX
    scale = np.where(live, rounded_up((absmax / largest).astype(np.float32), SCALE_BITS[terms]), np.float32(0))
    inverse = np.where(live, np.float32(1) / np.where(live, scale, np.float32(1)), np.float32(0))
    rounded = np.rint(grouped * inverse[..., None]).astype(np.int32)
    total = rounded.sum(axis=2, dtype=np.int32)
    integers = rounded.reshape(x.shape)
    if terms == 1:
        return integers.astype(np.int8), scale, total
    high = (integers + 64) >> 7
    return np.concatenate([high, integers - 128 * high], axis=1).astype(np.int8), scale, total


def rounded_up(value: Array, bits: int) -> Array:
    """The least f32 that is not below ``value`` (>= 0) and has at most ``bits`` bits behind its leading one."""
    below = (1 << (23 - bits)) - 1
    rounded: Array = ((value.view(np.int32) + below) & ~below).view(np.float32)
    return rounded


def activation_integers(x8: Array, inputs: int) -> Array:
    """The integers i64 [n, inputs] whose one or two terms are x8 i8 [n, terms * inputs]."""
    if x8.shape[1] == inputs:
        return x8.astype(np.int64)
    return 128 * x8[:, :inputs].astype(np.int64) + x8[:, inputs:]


def linear_packed(
    x8: Array, scale: Array, codes: Array, scales: Array, zeros: Array, bias: Array | None = None
) -> Array:
    """Linear layer on quantized activations.

    Args:
        x8: i8 [n, K] or [n, 2 K]; scale: f32 [n, G groups].
        codes: u8 [N, K], or integers that were looked up; scales: f16 or f32 [N, groups].
        zeros: integers [N, groups]: 2**(bits-1) if symmetric, 0 if looked up.
        bias: f32 [N] or None.

    Returns:
        f32 [n, N].
    """
    tokens, groups = scale.shape
    outputs, inputs = codes.shape
    integers = activation_integers(x8, inputs)
    centred = codes.reshape(outputs, groups, -1).astype(np.int64) - zeros.astype(np.int64)[..., None]
    exact = np.einsum("tgk,ogk->tgo", integers.reshape(tokens, groups, -1), centred)
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
