"""NumPy oracle of packed caches: quantization, layout and its inverse (:mod:`bitwright.codegen.cache_layout`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitwright.codegen.cache_layout import (
    LARGEST_HALF,
    LARGEST_SCALE,
    LINE_BYTES,
    ROWS,
    SCALE_MASK,
    SCALE_ROUNDING,
    TOKENS,
    ZERO_STEPS,
    PackedCache,
)

Array = NDArray[Any]


def quantize(x: Array, bits: int, group: int, share: float = 1.0, low_bits: int = 0) -> tuple[Array, Array, Array]:
    """Asymmetric round-to-nearest of float32 [..., width] in groups of ``group`` (the layout says what codes mean).

    With ``low_bits`` the second half of every group has codes of that width.

    The scale spans the group's range, widened to hold 0, or the middle ``share`` of it; both the scale and the zero
    point are rounded (the scale up) before the codes are computed from them.

    Returns:
        codes u8 [..., width], scales f16 [..., groups] of five bits of mantissa, zeros u8 [..., groups] below 64.
    """
    top = (1 << bits) - 1
    grouped = x.astype(np.float32, copy=False).reshape(*x.shape[:-1], -1, group)
    low, high = np.minimum(grouped.min(axis=-1), 0), np.maximum(grouped.max(axis=-1), 0)
    low, span = low + (high - low) * np.float32((1 - share) / 2), (high - low) * np.float32(share)
    exact = np.minimum(span / np.float32(top), np.float32(LARGEST_SCALE)).astype(np.float16)
    scales = ((exact.view(np.uint16) + np.uint16(SCALE_ROUNDING)) & np.uint16(SCALE_MASK)).view(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.where(wide > 0, np.float32(1) / np.where(wide > 0, wide, np.float32(1)), np.float32(0))
    zeros = np.clip(np.rint(-low * inverse * np.float32(ZERO_STEPS / top)), 0, ZERO_STEPS)
    tops = _tops(bits, low_bits, group)
    rates = (inverse[..., None] * (tops / np.float32(top))).astype(np.float64)
    # A fused multiply-add: the product is exact in double precision.
    shifted = grouped.astype(np.float64) * rates + zeros[..., None] * (tops / np.float32(ZERO_STEPS))
    codes = np.clip(np.rint(shifted.astype(np.float32)), 0, tops)
    return codes.astype(np.uint8).reshape(x.shape), scales, zeros.astype(np.uint8)


def _tops(bits: int, low_bits: int, group: int) -> Array:
    """The highest code of every element of a group, float32 [group]."""
    tops = np.full(group, (1 << bits) - 1, np.float32)
    if low_bits:
        tops[group // 2 :] = (1 << low_bits) - 1
    return tops


def dequantize(codes: Array, scales: Array, zeros: Array, bits: int, low_bits: int = 0) -> Array:
    """The float32 [..., width] that codes, scales and zero points stand for."""
    grouped = codes.reshape(*scales.shape, -1).astype(np.float64)
    tops = _tops(bits, low_bits, grouped.shape[-1]).astype(np.float64)
    offset = zeros.astype(np.float64)[..., None] * (tops / ZERO_STEPS)
    steps = scales.astype(np.float64)[..., None] * (((1 << bits) - 1) / tops)
    return ((grouped - offset) * steps).astype(np.float32).reshape(codes.shape)


def round_trip(x: Array, layout: PackedCache) -> Array:
    """What a cache gives back for x[tokens, heads, width], the tokens from position 0 on, to tokens of later runs."""
    result = dequantize(*quantized(x, layout), layout.bits, layout.scheme.low)
    exact = layout.exact_tokens
    result[:exact] = halves(x[:exact])
    return result


def quantized(x: Array, layout: PackedCache) -> tuple[Array, Array, Array]:
    """``quantize`` as a layout says."""
    return quantize(x, layout.bits, layout.width // layout.words, layout.share, layout.scheme.low)


def round_query(q: Array, layout: PackedCache) -> Array:
    """The queries f32 [n, heads, width] that a decode kernel multiplies packed keys with.

    Per head and group of elements, symmetric: to steps of the largest magnitude / 127, or / (127 * 128) for keys of 8
    bits, which a single byte would harm.
    """
    steps = np.float32(127 * 128 if layout.bits == 8 else 127)
    grouped = q.astype(np.float32, copy=False).reshape(*q.shape[:-1], -1, layout.group)
    largest = np.abs(grouped).max(axis=-1, keepdims=True)
    inverse = np.where(largest > 0, steps / np.where(largest > 0, largest, np.float32(1)), np.float32(0))
    rounded: Array = np.rint(grouped * inverse).astype(np.float64) * largest / steps
    return rounded.reshape(q.shape).astype(np.float32)


def pack(x: Array, layout: PackedCache, fill: Array | None = None) -> Array:
    """x[tokens, heads, width] quantized and stored at tokens 0, 1, ...

    Args:
        fill: the cache before, u8 of the layout's shape; None: zeros.
    """
    codes, scales, zeros = quantized(x, layout)
    cache = np.zeros(layout.shape, np.uint8) if fill is None else fill.copy()
    old_codes, old_scales, old_zeros = unpack(cache, layout)
    tokens = x.shape[0]
    old_codes[:tokens, :, : layout.width] = codes
    # Keys whose last unit is filled up: what is stored there is zero.
    old_codes[:tokens, :, layout.width :] = 0
    old_scales[:tokens] = scales
    old_zeros[:tokens] = zeros
    blocks = cache[:, : layout.blocks * layout.block_bytes].reshape(layout.heads, layout.blocks, layout.block_bytes)
    blocks[..., : layout.code_bytes] = _pack_codes(old_codes, layout)
    words = (old_scales.view(np.uint16) << np.uint16(1)) | old_zeros
    blocks[..., layout.code_bytes :] = _by_block(words, layout).view(np.uint8).reshape(layout.heads, layout.blocks, -1)
    result = np.concatenate([blocks.reshape(layout.heads, -1), cache[:, layout.blocks * layout.block_bytes :]], axis=1)
    if layout.exact_tokens and tokens:
        end = layout.exact_at + 2 * layout.width
        result[:, layout.exact_at : end] = halves(x[0]).view(np.uint8)
    if layout.scheme.recent and tokens:
        _put_recent(result, halves(x), layout)
    return result


def halves(x: Array) -> Array:
    """What exact tokens are kept as, f16 of x's shape."""
    return np.ascontiguousarray(np.clip(x, -LARGEST_HALF, LARGEST_HALF).astype(np.float16))


def _put_recent(cache: Array, x: Array, layout: PackedCache) -> None:
    """The last run of tokens of x f16[tokens, heads, width] into the ring; other places stay as they are."""
    run = layout.scheme.recent
    end = layout.recent_at + 2 * layout.width * run
    ring = np.ascontiguousarray(cache[:, layout.recent_at : end]).view(np.float16)
    for at in range((len(x) - 1) // run * run, len(x)):
        place = at % run
        if layout.scheme.tensor == "v":
            ring.reshape(layout.heads, run, layout.width)[:, place] = x[at]
        else:
            ring.reshape(layout.heads, run // ROWS, layout.width, ROWS)[:, place // ROWS, :, place % ROWS] = x[at]
    cache[:, layout.recent_at : end] = ring.view(np.uint8)


def unpack(cache: Array, layout: PackedCache) -> tuple[Array, Array, Array]:
    """codes u8 [tokens, heads, stored width], scales f16 and zeros u8 [tokens, heads, groups] of a whole cache."""
    blocks = cache[:, : layout.blocks * layout.block_bytes].reshape(layout.heads, layout.blocks, layout.block_bytes)
    stored = np.ascontiguousarray(blocks[..., layout.code_bytes :]).view(np.uint16)
    words = _by_token(stored.reshape(layout.heads, layout.blocks, layout.words, TOKENS))
    scales = ((words >> np.uint16(1)) & np.uint16(SCALE_MASK)).view(np.float16)
    zeros = (words & np.uint16(ZERO_STEPS)).astype(np.uint8)
    return _unpack_codes(blocks[..., : layout.code_bytes], layout), scales, zeros


def _by_block(values: Array, layout: PackedCache) -> Array:
    """[tokens, heads, groups] -> [heads, blocks, groups, 32]"""
    return np.ascontiguousarray(values.reshape(layout.blocks, TOKENS, layout.heads, -1).transpose(2, 0, 3, 1))


def _by_token(values: Array) -> Array:
    """[heads, blocks, groups, 32] -> [tokens, heads, groups]"""
    heads, blocks, groups, _ = values.shape
    return values.transpose(1, 3, 0, 2).reshape(blocks * TOKENS, heads, groups).copy()


def _pack_codes(codes: Array, layout: PackedCache) -> Array:
    """[tokens, heads, stored width] -> u8 [heads, blocks, code bytes]"""
    if len(layout.parts) > 1:
        halves = np.split(codes, len(layout.parts), axis=2)
        return np.concatenate([_pack_codes(c, part) for c, part in zip(halves, layout.parts, strict=True)], axis=2)
    heads, blocks = layout.heads, layout.blocks
    lines = np.zeros((heads, blocks, layout.row_blocks, layout.units, layout.lines, LINE_BYTES), np.uint8)
    steps = _steps(codes, layout)
    for plane in layout.planes:
        bits = (steps >> plane.position) & ((1 << plane.width) - 1)
        fields = bits.reshape(*steps.shape[:4], plane.lines, plane.fields, LINE_BYTES)
        for field in range(plane.fields):
            lines[..., plane.first : plane.first + plane.lines, :] |= fields[..., field, :] << (plane.width * field)
    return lines.reshape(heads, blocks, layout.code_bytes)


def _unpack_codes(packed: Array, layout: PackedCache) -> Array:
    if len(layout.parts) > 1:
        first, second = layout.parts
        cut = first.code_bytes
        return np.concatenate(
            [_unpack_codes(packed[..., :cut], first), _unpack_codes(packed[..., cut:], second)], axis=2
        )
    heads, blocks = layout.heads, layout.blocks
    lines = packed.reshape(heads, blocks, layout.row_blocks, layout.units, layout.lines, LINE_BYTES)
    steps = np.zeros((*lines.shape[:4], layout.unit // 4, LINE_BYTES), np.uint8)
    for plane in layout.planes:
        shifts = np.arange(0, 8, plane.width, dtype=np.uint8)[:, None]
        fields = (lines[..., plane.first : plane.first + plane.lines, None, :] >> shifts) & ((1 << plane.width) - 1)
        steps |= (fields << plane.position).reshape(steps.shape)
    return _unsteps(steps, layout)


def _steps(codes: Array, layout: PackedCache) -> Array:
    """[tokens, heads, stored width] -> [heads, blocks, row block, unit, step of 4 inputs, byte 4 * row + j]"""
    blocks, unit = layout.blocks, layout.unit
    if layout.scheme.tensor == "k":
        split = codes.reshape(blocks, 2, ROWS, layout.heads, layout.units, unit // 4, 4)
        order = split.transpose(3, 0, 1, 4, 5, 2, 6)
    else:
        split = codes.reshape(blocks, layout.units, unit // 4, 4, layout.heads, layout.row_blocks, ROWS)
        order = split.transpose(4, 0, 5, 1, 2, 6, 3)
    return np.ascontiguousarray(order).reshape(*order.shape[:5], LINE_BYTES)


def _unsteps(steps: Array, layout: PackedCache) -> Array:
    blocks, split = layout.blocks, steps.reshape(*steps.shape[:5], ROWS, 4)
    if layout.scheme.tensor == "k":
        order = split.transpose(1, 2, 5, 0, 3, 4, 6)
    else:
        order = split.transpose(1, 3, 4, 6, 0, 2, 5)
    return np.ascontiguousarray(order).reshape(blocks * TOKENS, layout.heads, -1)
