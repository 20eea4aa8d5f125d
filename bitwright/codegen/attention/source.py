"""Where a block of attention finds keys and values as floats: in a float cache, or dequantized chunk by chunk."""

from __future__ import annotations

from typing import Any, Protocol

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Keys
from bitwright.codegen.builder import load, loop, splat, store, vector
from bitwright.codegen.cache import BLOCK, CacheSpec
from bitwright.codegen.cache_layout import ROWS, TOKENS, PackedCache
from bitwright.codegen.cache_read import PackedHead
from bitwright.codegen.vectormath import hold, load_float


class KeySource(Protocol):
    """Keys of one head, 16 tokens side by side."""

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        """Emit what makes keys ``first .. end-1`` (``first`` a multiple of the alignment) readable."""

    def key(self, head: Any, block: Any, d: Any, lane: int, lanes: int) -> Any:
        """float32 lanes: element d of tokens 16 * block + lane ..."""


class ValueSource(Protocol):
    """Values of one head, row by row."""

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        """Emit what makes values ``first .. end-1`` readable."""

    def value(self, head: Any, token: Any, offset: Any, lanes: int) -> Any:
        """float32 lanes of a token's row."""


def align_down(cache: CacheSpec, token: Any) -> Any:
    """The last token, not after ``token``, that a chunk may begin with."""
    step = T.int64(BLOCK if cache.is_float else TOKENS)
    return T.floordiv(token, step) * step


def cached_keys(cache: CacheSpec, chunk: int, lanes: int, head: Any, k_cache: Any, v_cache: Any) -> Keys:
    """Keys and values of one head as floats, whatever the cache holds. Call it inside the loop that owns the block."""
    return joined(cache, key_source(cache, k_cache, chunk, lanes), value_source(cache, v_cache, chunk, lanes), head)


def joined(cache: CacheSpec, keys: KeySource, values: ValueSource, head: Any) -> Keys:
    """Keys and values of one head from their sources."""

    def prepare(first: Any, end: Any) -> None:
        keys.prepare(head, first, end)
        values.prepare(head, first, end)

    return Keys(
        key=lambda b, d, lane, n: keys.key(head, b, d, lane, n),
        blocks=T.int64(cache.capacity // BLOCK),
        value=lambda t, offset, n: values.value(head, t, offset, n),
        prepare=prepare,
        align=BLOCK if cache.is_float else TOKENS,
    )


def key_source(cache: CacheSpec, buffer: Any, chunk: int, lanes: int) -> KeySource:
    layout = cache.packed_keys
    return FloatKeys(buffer) if layout is None else PackedKeys(layout, buffer, chunk, lanes)


def value_source(cache: CacheSpec, buffer: Any, chunk: int, lanes: int) -> ValueSource:
    layout = cache.packed_values
    return FloatValues(buffer) if layout is None else PackedValues(layout, buffer, chunk, lanes)


class FloatKeys:
    """Keys that are read from the cache and widened."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        pass

    def key(self, head: Any, block: Any, d: Any, lane: int, lanes: int) -> Any:
        return load_float(self._buffer, [head, block, d, T.int64(lane)], lanes)


class FloatValues:
    """Values that are read from the cache and widened."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        pass

    def value(self, head: Any, token: Any, offset: Any, lanes: int) -> Any:
        return load_float(self._buffer, [head, token, T.int64(offset) if isinstance(offset, int) else offset], lanes)


class PackedKeys:
    """Keys of one chunk, dequantized to scratch. Make it inside the loop that owns the chunk."""

    def __init__(self, layout: PackedCache, buffer: Any, chunk: int, lanes: int) -> None:
        self._layout, self._buffer, self._chunk, self._lanes = layout, buffer, chunk, lanes
        self._scratch = T.alloc_buffer((chunk // BLOCK, layout.width, BLOCK), "float32")

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        layout, lanes = self._layout, self._lanes
        packed = PackedHead(layout, self._buffer, head, lanes)
        first_run = T.Bind(T.floordiv(first, T.int64(ROWS)))
        runs = T.Bind(T.floordiv(end - first + (ROWS - 1), T.int64(ROWS)))
        with loop(runs) as index:
            run = T.Bind(first_run + index)
            slot = T.Bind(T.floormod(run, T.int64(self._chunk // ROWS)))
            block, part = T.Bind(T.floordiv(run, T.int64(2))), T.Bind(T.floormod(run, T.int64(2)))
            for lane in range(0, ROWS, lanes):
                if len(layout.parts) > 1:
                    for number in range(len(layout.parts)):
                        self._dequantize_group(packed, (block, part, lane), slot, number, packed.part(number), 0)
                else:
                    with loop(layout.groups) as group:
                        self._dequantize_group(packed, (block, part, lane), slot, group, packed, group)
        if layout.exact_tokens:
            with T.If(first == 0), T.Then(), loop(layout.width) as d:
                T.buffer_store(self._scratch, packed.exact(d, 1), [T.int64(0), d, T.int64(0)])

    def _dequantize_group(
        self, packed: PackedHead, at: tuple[Any, Any, int], slot: Any, group: Any, coded: PackedHead, inside: Any
    ) -> None:
        """All of a group: number ``inside`` of those whose codes ``coded`` reads."""
        block, part, lane = at
        size, unit = self._layout.group, coded.layout.unit
        scale = hold(packed.scales(block, group, part * ROWS + lane, self._lanes))
        offset = hold(packed.offsets(block, group, part * ROWS + lane, self._lanes))
        # A group is whole units; else units have 32 elements, and it begins or ends with half of one.
        span = unit if size % unit == 0 else ROWS
        with loop(size // span) as inner:
            column = T.Bind(inside * size + inner * span)
            self._dequantize(coded, at, slot, (column, (group - inside) * size), span, (scale, offset))

    def _dequantize(
        self,
        packed: PackedHead,
        at: tuple[Any, Any, int],
        slot: Any,
        place: tuple[Any, Any],
        span: int,
        affine: tuple[Any, Any],
    ) -> None:
        """``span`` elements, all of a unit or (span < unit) one half of it.

        ``place``: the first of them among those that ``packed`` reads, and the element that those begin with.
        """
        layout, lanes = packed.layout, self._lanes
        block, part, lane = at
        column, base = place
        unit = T.Bind(T.floordiv(column, T.int64(layout.unit)))
        for half in range(layout.unit // span):

            def emit(half: int = half) -> None:
                for step in range(span // 4):
                    codes = packed.codes(block, part, unit, half * span // 4 + step, lane)
                    for byte in range(4):
                        value = (byte_of(codes, byte, lanes) - affine[1]) * affine[0]
                        store(self._scratch, value, [slot, base + column + 4 * step + byte, lane], lanes)

            if span == layout.unit:
                emit()
            else:
                with T.If(T.floormod(column, T.int64(layout.unit)) == T.int64(half * span)), T.Then():
                    emit()

    def key(self, head: Any, block: Any, d: Any, lane: int, lanes: int) -> Any:
        slot = T.floormod(block, T.int64(self._chunk // BLOCK))
        return load(self._scratch, [slot, d, T.int64(lane)], lanes)


class PackedValues:
    """Values of one chunk, dequantized to scratch. Make it inside the loop that owns the chunk."""

    def __init__(self, layout: PackedCache, buffer: Any, chunk: int, lanes: int) -> None:
        self._layout, self._buffer, self._chunk, self._lanes = layout, buffer, chunk, lanes
        self._scratch = T.alloc_buffer((chunk, layout.width), "float32")

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        layout, lanes = self._layout, self._lanes
        packed = PackedHead(layout, self._buffer, head, lanes)
        unit_tokens = layout.unit
        first_unit = T.Bind(T.floordiv(first, T.int64(unit_tokens)))
        units = T.Bind(T.floordiv(end - first + (unit_tokens - 1), T.int64(unit_tokens)))
        per_block = TOKENS // unit_tokens
        with loop(units) as index:
            whole = T.Bind(first_unit + index)
            block, unit = T.Bind(T.floordiv(whole, T.int64(per_block))), T.Bind(T.floormod(whole, T.int64(per_block)))
            with loop(layout.row_blocks) as run:
                group = T.Bind(T.floordiv(run * ROWS, T.int64(layout.group)))
                for step in range(unit_tokens // 4):
                    token = unit * unit_tokens + 4 * step
                    scales = [hold(packed.scales(block, group, token + j, 1)) for j in range(4)]
                    offsets = [hold(packed.offsets(block, group, token + j, 1)) for j in range(4)]
                    for lane in range(0, ROWS, lanes):
                        codes = packed.codes(block, run, unit, step, lane)
                        for byte in range(4):
                            code = byte_of(codes, byte, lanes)
                            value = (code - splat(offsets[byte], lanes)) * splat(scales[byte], lanes)
                            row = T.floormod(whole * unit_tokens, T.int64(self._chunk)) + 4 * step + byte
                            store(self._scratch, value, [row, run * ROWS + lane], lanes)

    def value(self, head: Any, token: Any, offset: Any, lanes: int) -> Any:
        row = T.floormod(token, T.int64(self._chunk))
        return load(self._scratch, [row, T.int64(offset) if isinstance(offset, int) else offset], lanes)


def byte_of(codes: Any, byte: int, lanes: int) -> Any:
    """f32 x lanes: byte ``byte`` of every 32-bit lane."""
    words = T.reinterpret(codes, dtype=vector("uint32", lanes))
    if byte:
        words = words >> splat(T.uint32(8 * byte), lanes)
    if byte < 3:
        words = words & splat(T.uint32(255), lanes)
    return T.cast(T.reinterpret(words, dtype=vector("int32", lanes)), vector("float32", lanes))
