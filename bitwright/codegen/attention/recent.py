"""Where attention finds the tokens of a query's own run: packed caches keep them in half precision in a ring.

The token at position p lies in place p mod R of a ring of R. It holds what was appended last, so that a prompt's tokens
are read from the rows that were appended with them, and only those before the prompt from the ring: a prompt that
begins inside a run ends in it. Importing this module imports TVM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Keys
from bitwright.codegen.attention.source import FloatKeys, FloatValues, KeySource, ValueSource, joined
from bitwright.codegen.builder import load, loop, store, vector
from bitwright.codegen.cache import BLOCK, CacheSpec
from bitwright.codegen.cache_layout import PackedCache
from bitwright.codegen.cache_read import PackedHead
from bitwright.codegen.cache_write import within_halves
from bitwright.codegen.vectormath import for_spans


def run_of(cache: CacheSpec, token: Any) -> Any:
    """The first position of the run that holds position ``token``."""
    run = T.int64(cache.recent)
    return T.floordiv(token, run) * run


def cached_run(cache: CacheSpec, lanes: int, head: Any, k_cache: Any, v_cache: Any) -> Keys:
    """Keys and values of the last run of one head."""
    packed_keys, packed_values = cache.packed_keys, cache.packed_values
    keys: KeySource = FloatKeys(k_cache) if packed_keys is None else RingKeys(packed_keys, k_cache, lanes)
    values: ValueSource = FloatValues(v_cache) if packed_values is None else RingValues(packed_values, v_cache, lanes)
    return joined(cache, keys, values, head)


class RingKeys:
    """Keys that are read from the ring."""

    def __init__(self, layout: PackedCache, buffer: Any, lanes: int) -> None:
        self._layout, self._buffer, self._lanes = layout, buffer, lanes

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        pass

    def key(self, head: Any, block: Any, d: Any, lane: Any, lanes: int) -> Any:
        packed = PackedHead(self._layout, self._buffer, head, self._lanes)
        place = T.floormod(block, T.int64(self._layout.scheme.recent // BLOCK))
        return packed.recent_key(place, d, lane, lanes)


class RingValues:
    """Values that are read from the ring."""

    def __init__(self, layout: PackedCache, buffer: Any, lanes: int) -> None:
        self._layout, self._buffer, self._lanes = layout, buffer, lanes

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        pass

    def value(self, head: Any, token: Any, offset: Any, lanes: int) -> Any:
        packed = PackedHead(self._layout, self._buffer, head, self._lanes)
        return packed.recent_value(T.floormod(token, T.int64(self._layout.scheme.recent)), offset, lanes)


class Appended:
    """Rows that were just appended: token ``pos + i`` is row i, whose columns from ``first`` on are the heads."""

    def __init__(self, rows: Any, first: int, pos: Any) -> None:
        self._rows, self._first, self.pos = rows, first, pos

    def halves(self, token: Any, column: Any, lanes: int) -> Any:
        """f32 x lanes: what halves keep of a token's elements."""
        value = within_halves(load(self._rows, [token - self.pos, self._first + column], lanes), lanes)
        return T.cast(T.cast(value, vector("float16", lanes)), vector("float32", lanes))


def appended_run(
    cache: CacheSpec, chunk: int, lanes: int, head: Any, caches: tuple[Any, Any], rows: Sequence[Appended]
) -> Keys:
    """Keys and values of one head, chunk by chunk, as tokens of the same run see them; ``rows``: of k and of v."""
    packed_keys, packed_values = cache.packed_keys, cache.packed_values
    keys: KeySource = FloatKeys(caches[0])
    if packed_keys is not None:
        keys = RecentKeys(packed_keys, caches[0], rows[0], chunk, lanes)
    values: ValueSource = FloatValues(caches[1])
    if packed_values is not None:
        values = RecentValues(packed_values, caches[1], rows[1], chunk, lanes)
    return joined(cache, keys, values, head)


class RecentKeys:
    """Keys of a chunk, appended rows or before them the ring, in scratch. Make it inside the loop that owns it."""

    def __init__(self, layout: PackedCache, buffer: Any, appended: Appended, chunk: int, lanes: int) -> None:
        self._ring, self._appended = RingKeys(layout, buffer, lanes), appended
        self._chunk, self._width = chunk, layout.width
        self._scratch = T.alloc_buffer((chunk // BLOCK, layout.width, BLOCK), "float32")

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        with loop(end - first, start=first) as token:
            slot = T.Bind(T.floormod(token, T.int64(self._chunk)))
            block, lane = T.Bind(T.floordiv(slot, T.int64(BLOCK))), T.Bind(T.floormod(slot, T.int64(BLOCK)))
            with T.If(token >= self._appended.pos):
                with T.Then(), loop(self._width) as d:
                    value = self._appended.halves(token, head * self._width + d, 1)
                    T.buffer_store(self._scratch, value, [block, d, lane])
                with T.Else(), loop(self._width) as d:
                    value = self._ring.key(head, T.floordiv(token, T.int64(BLOCK)), d, lane, 1)
                    T.buffer_store(self._scratch, value, [block, d, lane])

    def key(self, head: Any, block: Any, d: Any, lane: int, lanes: int) -> Any:
        slot = T.floormod(block, T.int64(self._chunk // BLOCK))
        return load(self._scratch, [slot, d, T.int64(lane)], lanes)


class RecentValues:
    """Values of a chunk, appended rows or before them the ring, in scratch. Make it inside the loop that owns it."""

    def __init__(self, layout: PackedCache, buffer: Any, appended: Appended, chunk: int, lanes: int) -> None:
        self._ring, self._appended, self._chunk = RingValues(layout, buffer, lanes), appended, chunk
        self._width, self._lanes = layout.width, lanes
        self._scratch = T.alloc_buffer((chunk, layout.width), "float32")

    def prepare(self, head: Any, first: Any, end: Any) -> None:
        with loop(end - first, start=first) as token:
            slot = T.Bind(T.floormod(token, T.int64(self._chunk)))

            def appended(offset: Any, n: int) -> None:
                value = self._appended.halves(token, head * self._width + offset, n)
                store(self._scratch, value, [slot, offset], n)

            def kept(offset: Any, n: int) -> None:
                store(self._scratch, self._ring.value(head, token, offset, n), [slot, offset], n)

            with T.If(token >= self._appended.pos):
                with T.Then():
                    for_spans(self._width, self._lanes, appended)
                with T.Else():
                    for_spans(self._width, self._lanes, kept)

    def value(self, head: Any, token: Any, offset: Any, lanes: int) -> Any:
        row = T.floormod(token, T.int64(self._chunk))
        return load(self._scratch, [row, T.int64(offset) if isinstance(offset, int) else offset], lanes)
