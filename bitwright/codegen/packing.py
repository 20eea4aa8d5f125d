"""Packs weight matrices into the layout that kernels read, and back. NumPy only; see ``layout`` for the format."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.codegen.layout import PackedLayout
from bitwright.errors import InternalError, UnsupportedError
from bitwright.scheme import CODEBOOK_BYTES

Array = npt.NDArray[Any]


CODEBOOK_ZERO = 128
"""The stored byte of a codebook's value 0."""


def pack(
    codes: Array, scales: Array, zeros: Array | None, layout: PackedLayout, codebook: Array | None = None
) -> dict[str, Array]:
    """Packs integer codes.

    Args:
        codes: u8 [outputs, inputs], each below 2**bits.
        scales: [outputs, groups], stored as f16.
        zeros: u8 [outputs, groups] for asymmetric schemes, else None.
        codebook: int8 [2**bits] for codebook schemes, else None.

    Raises:
        InternalError: shapes or code values that do not fit the layout.
    """
    grouped = (layout.outputs, layout.groups)
    _expect_shape("codes", codes, (layout.outputs, layout.inputs))
    _expect_shape("scales", scales, grouped)
    if (zeros is None) != layout.weight.symmetric:
        raise InternalError(f"zero points do not belong to {layout.weight}", limit="only asymmetric schemes have them")
    if codes.size and int(codes.max()) >> layout.weight.bits:
        raise InternalError(f"code {int(codes.max())} does not fit {layout.weight.bits} bits", where="pack")
    packed = {"codes": _pack_codes(codes.astype(np.uint8, copy=False), layout)}
    packed["scales"] = _tile_groups(scales.astype(np.float16, copy=False), layout)
    if zeros is not None:
        _expect_shape("zeros", zeros, grouped)
        packed["zeros"] = _tile_groups(zeros.astype(np.uint8, copy=False), layout)
    if (codebook is not None) != layout.weight.is_codebook:
        raise InternalError(f"a codebook belongs to codebook schemes only, not {layout.weight}", where="pack")
    if codebook is not None:
        _expect_shape("codebook", codebook, (1 << layout.weight.bits,))
        if (codebook % layout.weight.value_step).any():
            raise InternalError(f"a codebook of {layout.weight} has odd values", where="pack")
        bytes_ = (codebook.astype(np.int16) + CODEBOOK_ZERO).astype(np.uint8)
        packed["codebook"] = np.tile(bytes_, CODEBOOK_BYTES // bytes_.size)
    return packed


def unpack(tensors: dict[str, Array], layout: PackedLayout) -> tuple[Array, Array, Array | None]:
    """The inverse of ``pack``: codes u8 [outputs, inputs], scales f16 and zeros u8 [outputs, groups] (or None)."""
    zeros = tensors.get("zeros")
    return (
        _unpack_codes(tensors["codes"], layout),
        _untile_groups(tensors["scales"], layout),
        None if zeros is None else _untile_groups(zeros, layout),
    )


def unpack_codebook(tensors: dict[str, Array], layout: PackedLayout) -> Array | None:
    """The values that codes look up: int8 [2**bits], or None for other schemes."""
    if not layout.weight.is_codebook:
        return None
    return (tensors["codebook"][: 1 << layout.weight.bits].astype(np.int16) - CODEBOOK_ZERO).astype(np.int8)


def pack_float(weights: Array, layout: PackedLayout) -> dict[str, Array]:
    """Packs float weights [outputs, inputs] into ``{"weights": [tiles, inputs, rows]}`` of the layout's dtype.

    Raises:
        UnsupportedError: a weight is too large for the dtype (it would become infinite).
    """
    _expect_shape("weights", weights, (layout.outputs, layout.inputs))
    limit = float(np.finfo(layout.tensors[0].dtype).max)
    if weights.size and max(float(weights.max()), -float(weights.min())) > limit:
        raise UnsupportedError(
            f"a weight is too large for {layout.weight}",
            limit=f"magnitudes up to {limit:g}",
            remedy="store this matrix as f32",
        )
    rows = _pad_rows(weights.astype(layout.tensors[0].dtype, copy=False), layout)
    return {"weights": np.ascontiguousarray(rows.reshape(layout.tiles, layout.rows, -1).transpose(0, 2, 1))}


def unpack_float(tensors: dict[str, Array], layout: PackedLayout) -> Array:
    """The inverse of ``pack_float``: [outputs, inputs] in the stored dtype."""
    return tensors["weights"].transpose(0, 2, 1).reshape(-1, layout.inputs)[: layout.outputs]


def dequantize(tensors: dict[str, Array], layout: PackedLayout) -> Array:
    """The f32 [outputs, inputs] matrix that packed tensors of any scheme stand for."""
    if layout.weight.is_float:
        return unpack_float(tensors, layout).astype(np.float32)
    codes, scales, zeros = unpack(tensors, layout)
    codebook = unpack_codebook(tensors, layout)
    if codebook is not None:
        values = codebook[codes].reshape(layout.outputs, layout.groups, layout.group).astype(np.float32)
        return (values * scales.astype(np.float32)[..., None]).reshape(layout.outputs, layout.inputs)
    offset = np.int32(1 << (layout.weight.bits - 1)) if zeros is None else zeros.astype(np.int32)[..., None]
    centred = codes.reshape(layout.outputs, layout.groups, layout.group).astype(np.int32) - offset
    return (centred * scales.astype(np.float32)[..., None]).astype(np.float32).reshape(layout.outputs, layout.inputs)


def _pack_codes(codes: Array, layout: PackedLayout) -> Array:
    tiles, blocks, lanes, unit = layout.tiles, layout.blocks, layout.lanes, layout.unit
    # [tile, unit, block, step of four inputs, row, j]
    steps = _pad_rows(codes, layout).reshape(tiles, blocks, lanes, layout.inputs // unit, unit // 4, 4)
    steps = steps.transpose(0, 3, 1, 4, 2, 5).reshape(tiles, layout.inputs // unit, blocks, unit // 4, 4 * lanes)
    packed = np.zeros((*steps.shape[:3], layout.lines, 4 * lanes), np.uint8)
    for step, field in enumerate(layout.fields):
        for piece in field:
            bits = (steps[..., step, :] >> piece.position) & ((1 << piece.width) - 1)
            packed[..., piece.line, :] |= bits << piece.source
    return packed


def _unpack_codes(packed: Array, layout: PackedLayout) -> Array:
    tiles, blocks, lanes, unit = layout.tiles, layout.blocks, layout.lanes, layout.unit
    head = packed.shape[:3]
    steps = np.zeros((*head, unit // 4, 4 * lanes), np.uint8)
    for step, field in enumerate(layout.fields):
        for piece in field:
            bits = (packed[..., piece.line, :] >> piece.source) & ((1 << piece.width) - 1)
            steps[..., step, :] |= bits << piece.position
    rows = steps.reshape(*head, unit // 4, lanes, 4).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(rows.reshape(tiles * blocks * lanes, layout.inputs)[: layout.outputs])


def _tile_groups(values: Array, layout: PackedLayout) -> Array:
    shape = (layout.tiles, layout.blocks, layout.lanes, layout.groups)
    return np.ascontiguousarray(_pad_rows(values, layout).reshape(shape).transpose(0, 3, 1, 2))


def _untile_groups(values: Array, layout: PackedLayout) -> Array:
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1).reshape(-1, layout.groups)[: layout.outputs])


def _pad_rows(rows: Array, layout: PackedLayout) -> Array:
    padding = layout.tiles * layout.rows - layout.outputs
    return np.pad(rows, ((0, padding), (0, 0))) if padding else rows


def _expect_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InternalError(f"{name} has shape {array.shape}, expected {shape}", where="pack")
