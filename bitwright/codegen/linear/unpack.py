"""Expressions that read packed tensors: codes out of bit planes, scales, zero points."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import load, splat, vector
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout


def step_codes(codes: Any, layout: PackedLayout, tile: Any, unit: Any, block: int, step: int) -> Any:
    """Codes of four inputs (step ``step`` of a unit) of ``lanes`` rows: u8 x (4 * lanes), byte 4 * row + j."""
    result = None
    for plane in layout.planes:
        line = load(codes, [tile, unit, block, plane.first + step // plane.fields, 0], 4 * layout.lanes)
        bits = bit_field(line, plane.width, step % plane.fields, plane.position, layout.lanes)
        result = bits if result is None else result | bits
    return result


def bit_field(line: Any, width: int, field: int, position: int, lanes: int) -> Any:
    """Bit field ``field`` of every byte, moved to bit ``position``; the mask drops what shifts carry across bytes."""
    if width == 8:
        return line
    shift = width * field - position
    if shift:
        words = T.reinterpret(line, dtype=vector("uint32", lanes))
        amount = splat(T.uint32(abs(shift)), lanes)
        words = words >> amount if shift > 0 else words << amount
        line = T.reinterpret(words, dtype=vector("uint8", 4 * lanes))
    return line & splat(T.uint8(((1 << width) - 1) << position), 4 * lanes)


def widen_half(value: Any, isa: Isa, lanes: int) -> Any:
    """f16 x lanes -> f32 x lanes, exact for finite values; by integer operations where there is no instruction."""
    if isa.half:
        return T.cast(value, vector("float32", lanes))
    word = vector("uint32", lanes)
    bits = T.cast(T.reinterpret(value, dtype=vector("uint16", lanes)), word)
    magnitude = (bits & splat(T.uint32(0x7FFF), lanes)) << splat(T.uint32(13), lanes)
    sign = (bits & splat(T.uint32(0x8000), lanes)) << splat(T.uint32(16), lanes)
    # The exponent is biased by 15 instead of 127; the multiplication also normalises subnormal halves.
    single = T.reinterpret(magnitude | sign, dtype=vector("float32", lanes))
    return single * splat(T.float32(2.0**112), lanes)


def group_scale(scales: Any, isa: Isa, tile: Any, group: Any, block: Any) -> Any:
    """f32 x lanes."""
    return widen_half(load(scales, [tile, group, block, 0], isa.lanes), isa, isa.lanes)


def group_offset(zeros: Any, layout: PackedLayout, bias: int, tile: Any, group: Any, block: Any) -> Any:
    """``bias`` - zero point, which added to a code centres it: an int for symmetric schemes, else int32 x lanes."""
    if zeros is None:
        return bias - (1 << (layout.weight.bits - 1))
    zero = T.cast(load(zeros, [tile, group, block, 0], layout.lanes), vector("int32", layout.lanes))
    return splat(T.int32(bias), layout.lanes) - zero


def code_of_byte(codes: Any, byte: int, lanes: int) -> Any:
    """f32 x lanes: byte ``byte`` of every 32-bit lane of ``codes``, times 2**(8 * byte) except for the last byte.

    One operation less than shifting every byte down; ``byte_weight`` is what the activation must be multiplied by.
    """
    words = T.reinterpret(codes, dtype=vector("uint32", lanes))
    if byte == 3:
        words = words >> splat(T.uint32(24), lanes)
    else:
        words = words & splat(T.uint32(255 << (8 * byte)), lanes)
    return T.cast(T.reinterpret(words, dtype=vector("int32", lanes)), vector("float32", lanes))


def byte_weight(byte: int) -> float:
    return 1.0 if byte == 3 else 2.0 ** (-8 * byte)
