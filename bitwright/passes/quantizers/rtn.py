"""Round to nearest.

Symmetric: the number of largest magnitude in a group, w, becomes the lowest code, so that all 2**b levels are used:
scale = w / -2**(b-1), code = round(x / scale) + 2**(b-1). Asymmetric: scale = (max - min) / (2**b - 1) over a range
that
includes zero, zero point = round(-min / scale). Scales are rounded to half precision first, codes are chosen for
the rounded
scale; ties round to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import UnsupportedError
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.scheme import WeightScheme

# Weights quantized at a time: the float temporaries of a large table would take several times its size.
BLOCK_WEIGHTS = 1 << 22

LARGEST_SCALE = float(np.finfo(np.float16).max)


def round_to_nearest(weights: npt.NDArray[np.float32], scheme: WeightScheme) -> QuantizedMatrix:
    """Quantize float32 [outputs, inputs] to a uniform scheme.

    Raises:
        UnsupportedError: a group's scale does not fit half precision.
    """
    outputs, inputs = weights.shape
    grouped = weights.reshape(outputs, scheme.groups(inputs), -1)
    quantize = _symmetric if scheme.symmetric else _asymmetric
    rows = max(BLOCK_WEIGHTS // inputs, 1)
    blocks = [quantize(grouped[start : start + rows], scheme.bits) for start in range(0, outputs, rows)]
    codes, scales = (np.concatenate([block[i] for block in blocks]) for i in range(2))
    zeros = None if scheme.symmetric else np.concatenate([block[2] for block in blocks])
    return QuantizedMatrix(codes.reshape(outputs, inputs), scales, zeros)


def half(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    if scales.size and float(np.abs(scales).max()) > LARGEST_SCALE:
        raise UnsupportedError(
            "a weight is too large for a half-precision scale",
            limit=f"scales up to {LARGEST_SCALE:g}",
            remedy="store this matrix as f16 or f32",
        )
    return scales.astype(np.float16)


def nearest_half(scales: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float16]:
    """Searched scales in half precision; those out of its range become its ends, and lose against other candidates."""
    result: npt.NDArray[np.float16] = np.clip(scales, -LARGEST_SCALE, LARGEST_SCALE).astype(np.float16)
    return result


def divide(values: npt.NDArray[np.float32], scales: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """values / scales, and 0 where a scale is zero (then every weight of the group is read as zero)."""
    wide = scales.astype(np.float32)[:, :, None]
    return np.divide(values, wide, out=np.zeros_like(values), where=wide != 0)


def _symmetric(
    grouped: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], None]:
    half_range = 2 ** (bits - 1)
    index = np.abs(grouped).argmax(axis=2, keepdims=True)
    extreme = np.take_along_axis(grouped, index, axis=2)[:, :, 0]
    scales = half(extreme / np.float32(-half_range))
    codes = np.clip(np.rint(divide(grouped, scales)) + half_range, 0, 2 * half_range - 1)
    return codes.astype(np.uint8), scales, None


def _asymmetric(
    grouped: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    levels = 2**bits - 1
    low = np.minimum(grouped.min(axis=2), 0)
    high = np.maximum(grouped.max(axis=2), 0)
    scales = half((high - low) / np.float32(levels))
    zeros = np.clip(np.rint(divide(-low[:, :, None], scales)), 0, levels)
    codes = np.clip(np.rint(divide(grouped, scales)) + zeros, 0, levels)
    return codes.astype(np.uint8), scales, zeros[:, :, 0].astype(np.uint8)
