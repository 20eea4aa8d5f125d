"""Expressions that read packed tensors: codes out of bit planes, scales, zero points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import load, splat, vector
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout

Lines = Callable[[int], Any]
"""The lines of a unit, by number: u8 x (4 * lanes)."""


def lines_of(codes: Any, layout: PackedLayout, tile: Any, unit: Any, block: int) -> Lines:
    """Lines that are loaded where they are used."""
    return lambda line: load(codes, [tile, unit, block, line, 0], 4 * layout.lanes)


def step_codes(lines: Lines, layout: PackedLayout, step: int) -> Any:
    """Codes of four inputs (step ``step`` of a unit) of ``lanes`` rows: u8 x (4 * lanes), byte 4 * row + j."""
    return field_codes(lines, layout, step, 0)


def field_codes(lines: Lines, layout: PackedLayout, step: int, position: int, *, any_above: bool = False) -> Any:
    """Codes of a step at bit ``position`` of their bytes, all other bits zero: code * 2**position.

    Args:
        any_above: bits above the code may be anything, which saves clearing them.
    """
    result = None
    for piece in layout.fields[step]:
        free = any_above and result is None
        width = 8 - piece.position - position if free else piece.width
        bits = _moved(lines(piece.line), piece.source, width, piece.position + position, layout.lanes)
        result = bits if result is None else result | bits
    return result


def _moved(line: Any, source: int, width: int, target: int, lanes: int) -> Any:
    """Bits ``source`` ... of every byte, at ``target`` ...; the mask drops what shifts carry across bytes."""
    shift = source - target
    if shift:
        words = T.reinterpret(line, dtype=vector("uint32", lanes))
        amount = splat(T.uint32(abs(shift)), lanes)
        words = words >> amount if shift > 0 else words << amount
        line = T.reinterpret(words, dtype=vector("uint8", 4 * lanes))
    return line if width == 8 else line & splat(T.uint8(((1 << width) - 1) << target), 4 * lanes)


def widen_half(value: Any, isa: Isa, lanes: int) -> Any:
    """f16 x lanes -> f32 x lanes, exact for finite values; by integer operations where there is no instruction."""
    if isa.half:
        return T.cast(value, vector("float32", lanes))
    # The sign in its place, copies of it cleared, the exponent's five bits as the lowest of eight, the mantissa behind.
    bits = T.cast(T.reinterpret(value, dtype=vector("uint16", lanes)), vector("uint32", lanes))
    spread = T.reinterpret(bits << splat(T.uint32(16), lanes), dtype=vector("int32", lanes)) >> splat(T.int32(3), lanes)
    single = T.reinterpret(spread & splat(T.int32(-0x70002000), lanes), dtype=vector("float32", lanes))
    # The exponent is biased by 15 instead of 127; the multiplication also normalises subnormal halves.
    return single * splat(T.float32(2.0**112), lanes)


def group_scale(scales: Any, isa: Isa, tile: Any, group: Any, block: Any) -> Any:
    """f32 x lanes."""
    return widen_half(load(scales, [tile, group, block, 0], isa.lanes), isa, isa.lanes)


def group_offset(zeros: Any, layout: PackedLayout, bias: int, tile: Any, group: Any, block: Any) -> Any:
    """``bias`` - zero point, which added to an operand centres it: an int for symmetric schemes, else int32 x lanes."""
    if zeros is None:
        return bias - layout.weight.centre
    zero = T.cast(load(zeros, [tile, group, block, 0], layout.lanes), vector("int32", layout.lanes))
    return splat(T.int32(bias), layout.lanes) - zero
