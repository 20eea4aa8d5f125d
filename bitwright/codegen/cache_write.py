"""Quantize one token of one head and write it into a packed cache (:mod:`bitwright.codegen.cache_layout`).

A token of keys owns four bytes of every line it touches. A token of values shares bytes with the other tokens of its
unit: its bits are replaced within the line. Importing this module imports TVM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, llvm, load, loop, stack, store, vector
from bitwright.codegen.cache_layout import (
    INPUT_MULTIPLE,
    LARGEST_HALF,
    LARGEST_SCALE,
    LINE_BYTES,
    ROWS,
    SCALE_MASK,
    SCALE_ROUNDING,
    TOKENS,
    ZERO_STEPS,
    PackedCache,
    Plane,
)
from bitwright.codegen.vectormath import hold, maximum, reduce_lanes, splat
from bitwright.scheme import AFFINE_BYTES


def write_token(
    layout: PackedCache, cache: Any, source: Callable[[Any, int], Any], head: Any, at: Any, last: Any, lanes: int
) -> None:
    """Store a token at position ``at`` of ``head``; ``source(offset, lanes)`` gives float32 lanes of its elements.

    ``last``: the position of the last token that is stored with it, whose run is what the ring of recent ones keeps.
    """
    block, token = T.Bind(T.floordiv(at, T.int64(TOKENS))), T.Bind(T.floormod(at, T.int64(TOKENS)))
    keys = layout.scheme.tensor == "k"
    codes = stack((-(-layout.width // INPUT_MULTIPLE) * INPUT_MULTIPLE,), "uint8")
    with loop(layout.words) as group:
        word = _quantize_group(layout, source, codes, group, lanes)
        at_word = layout.affine_at(block, group) + token * AFFINE_BYTES
        store(cache, T.reinterpret(word, dtype=vector("uint8", AFFINE_BYTES)), [head, at_word], AFFINE_BYTES)
    if layout.exact_tokens:
        with T.If(at == 0), T.Then():
            _write_exact(layout, cache, source, head, lanes)
    if layout.scheme.recent:
        run = T.int64(layout.scheme.recent)
        with T.If(T.floordiv(at, run) == T.floordiv(last, run)), T.Then():
            _write_recent(layout, cache, source, head, T.Bind(T.floormod(at, run)), lanes)
    if keys:
        for number, part in enumerate(layout.parts):
            _write_keys(part, cache, codes, number * part.width, head, block, token)
    else:
        _write_values(layout, cache, codes, head, block, token)


def _write_exact(layout: PackedCache, cache: Any, source: Callable[[Any, int], Any], head: Any, lanes: int) -> None:
    with loop(layout.width // lanes) as step:
        _store_halves(cache, source(step * lanes, lanes), [head, layout.exact_at + step * (2 * lanes)], lanes)


def _write_recent(
    layout: PackedCache, cache: Any, source: Callable[[Any, int], Any], head: Any, place: Any, lanes: int
) -> None:
    """Store a token's elements at a place of the ring; those of keys lie apart."""
    if layout.scheme.tensor == "k":
        block, lane = T.Bind(T.floordiv(place, T.int64(ROWS))), T.Bind(T.floormod(place, T.int64(ROWS)))
        with loop(layout.width) as d:
            _store_halves(cache, source(d, 1), [head, layout.recent_key_at(block, d, lane)], 1)
        return
    with loop(layout.width // lanes) as step:
        at = layout.recent_value_at(place, step * lanes)
        _store_halves(cache, source(step * lanes, lanes), [head, at], lanes)


def _store_halves(cache: Any, value: Any, at: list[Any], lanes: int) -> None:
    half = hold(T.cast(within_halves(value, lanes), vector("float16", lanes)))
    store(cache, T.reinterpret(half, dtype=vector("uint8", 2 * lanes)), at, 2 * lanes)


def within_halves(value: Any, lanes: int) -> Any:
    """float32 lanes, cut off where halves end."""
    return T.max(T.min(value, splat(LARGEST_HALF, lanes)), splat(-LARGEST_HALF, lanes))


def _quantize_group(layout: PackedCache, source: Callable[[Any, int], Any], codes: Any, group: Any, lanes: int) -> Any:
    """Codes of one group to ``codes``; returns the word u16 of its scale and zero point. The oracle says how."""
    size = layout.width // layout.words
    steps = size // lanes
    first = T.Bind(group * size)
    bounds = Registers(2, vector("float32", lanes))
    for index in range(2):
        bounds[index] = splat(0.0, lanes)
    with loop(steps) as step:
        value = hold(source(first + step * lanes, lanes))
        bounds[0] = T.min(bounds[0], value)
        bounds[1] = T.max(bounds[1], value)
    low, high = reduce_lanes(bounds[0], lanes, lambda a, b: T.min(a, b)), reduce_lanes(bounds[1], lanes, maximum)
    span = hold(high - low)
    if layout.share < 1:
        low = hold(low + span * T.float32((1 - layout.share) / 2))
        span = span * T.float32(layout.share)
    exact = T.cast(T.min(span / T.float32(layout.top), T.float32(LARGEST_SCALE)), "float16")
    scale = hold((T.reinterpret(exact, dtype="uint16") + T.uint16(SCALE_ROUNDING)) & T.uint16(SCALE_MASK))
    wide = hold(T.cast(T.reinterpret(scale, dtype="float16"), "float32"))
    inverse = hold(T.Select(wide > T.float32(0), T.float32(1) / wide, T.float32(0)))
    zero = hold(T.nearbyint((T.float32(0) - low) * inverse * T.float32(ZERO_STEPS / layout.top)))
    zero = hold(T.max(T.min(zero, T.float32(ZERO_STEPS)), T.float32(0)))
    single = vector("float32", lanes)
    for number, part in enumerate(layout.parts):
        offset = hold(zero * T.float32(part.top / ZERO_STEPS))
        rate = hold(inverse * T.float32(part.top / layout.top)) if part.top != layout.top else inverse
        with loop(layout.group // lanes) as step:
            column = first + number * layout.group + step * lanes
            shifted = llvm("llvm.fma", single, source(column, lanes), splat(rate, lanes), splat(offset, lanes))
            code = T.max(T.min(T.nearbyint(shifted), splat(float(part.top), lanes)), splat(0.0, lanes))
            whole = hold(T.cast(code, vector("int32", lanes)))
            store(codes, T.cast(whole, vector("uint8", lanes)), [column], lanes)
    return (scale << T.uint16(1)) | T.cast(T.cast(zero, "int32"), "uint16")


def _write_keys(layout: PackedCache, cache: Any, codes: Any, first: int, head: Any, block: Any, token: Any) -> None:
    """Write a token's codes of the elements ``first`` ..., all of ``layout``."""
    with loop(layout.units * layout.unit - layout.width, start=layout.width) as missing:
        T.buffer_store(codes, T.uint8(0), [missing])
    run, row = T.floordiv(token, T.int64(ROWS)), T.floormod(token, T.int64(ROWS))
    with loop(layout.units) as unit:
        for plane in layout.planes:
            for line in range(plane.lines):
                word = Registers(1, "uint32")
                word[0] = T.uint32(0)
                for field in range(plane.fields):
                    step = line * plane.fields + field
                    four = T.reinterpret(load(codes, [first + unit * layout.unit + 4 * step], 4), dtype="uint32")
                    bits = (four >> T.uint32(plane.position)) & T.uint32(_mask(plane) * 0x01010101)
                    word[0] = word[0] | (bits << T.uint32(plane.width * field))
                offset = ((run * layout.units + unit) * layout.lines + plane.first + line) * LINE_BYTES + 4 * row
                store(cache, T.reinterpret(word[0], dtype="uint8x4"), [head, layout.codes_at(block) + offset], 4)


def _write_values(layout: PackedCache, cache: Any, codes: Any, head: Any, block: Any, token: Any) -> None:
    unit = T.Bind(T.floordiv(token, T.int64(layout.unit)))
    step = T.Bind(T.floordiv(T.floormod(token, T.int64(layout.unit)), T.int64(4)))
    byte = T.Bind(T.floormod(token, T.int64(4)))
    words = vector("uint32", ROWS)
    with loop(layout.row_blocks) as rows:
        code = hold(T.cast(load(codes, [rows * ROWS], ROWS), words))
        for plane in layout.planes:
            field = T.floormod(step, T.int64(plane.fields))
            shift = T.broadcast(T.cast(byte * 8 + field * plane.width, "uint32"), ROWS)
            mask = T.broadcast(T.uint32(_mask(plane)), ROWS)
            line = plane.first + T.floordiv(step, T.int64(plane.fields))
            offset = ((rows * layout.units + unit) * layout.lines + line) * LINE_BYTES
            at = [head, layout.codes_at(block) + offset]
            old = T.reinterpret(load(cache, at, LINE_BYTES), dtype=words)
            kept = old & (T.broadcast(T.uint32(0xFFFFFFFF), ROWS) ^ (mask << shift))
            bits = ((code >> T.broadcast(T.uint32(plane.position), ROWS)) & mask) << shift
            store(cache, T.reinterpret(kept | bits, dtype=vector("uint8", LINE_BYTES)), at, LINE_BYTES)


def _mask(plane: Plane) -> int:
    return (1 << plane.width) - 1
