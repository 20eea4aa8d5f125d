"""Decode attention: one query token against the whole cache.

The work is a line of (key/value head, chunk) pairs; each thread takes an equal run of it, so that any number of heads
balances on any number of threads. A thread leaves (maximum, sum, output) per query head; then they are merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Ahead, Keys, Range, Tile, ceildiv
from bitwright.codegen.attention.decode_block import DecodeBlock
from bitwright.codegen.attention.integer_keys import IntegerKeys
from bitwright.codegen.attention.integer_values import IntegerValues
from bitwright.codegen.attention.source import align_down
from bitwright.codegen.attention.spec import AttentionSpec
from bitwright.codegen.builder import Registers, load, loop, prefetch, store, vector
from bitwright.codegen.cache import BLOCK, CacheSpec
from bitwright.codegen.cache_layout import TOKENS
from bitwright.codegen.cache_read import Blocks
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.team import THREADS, Phase, TeamKernel, share
from bitwright.codegen.vectormath import LOWEST, exp2, for_spans, hold, load_float, spans, splat

CHUNKS = {16: 64, 8: 16, 4: 16}
"""Keys of a chunk, by the lanes of a vector: so few that its keys and values and the prefetched next ones share L1.
Measured with 16 lanes (Zen 5), 64 beat 128 by a quarter from DRAM and are within 2 % of 512 in cache; with 8 (Zen 3),
16 beat 64 by a fifth from DRAM, where long contexts lie, and are a seventh slower in L3."""
PACKED_CHUNK, PACKED_CHUNK_BYTES = 64, 10 * 1024
"""Fewest keys and most bytes of a chunk of packed caches: what is done once per chunk asks for more of them."""
LINE_BYTES = 64
MERGED_VECTORS = 8
"""Vectors of one head's output that are merged in one pass over the threads."""


def attention_team_kernel(spec: AttentionSpec) -> TeamKernel:
    """Arguments: q f32[1, heads * D], k_cache, v_cache, pos i64, y f32[1, heads * Dv]."""
    cache, width = spec.cache, spec.heads * spec.cache.value_dim
    return TeamKernel(
        spec.name,
        arguments=(
            TensorSpec("q", "float32", (1, spec.heads * cache.head_dim)),
            cache.keys,
            cache.values,
            TensorSpec("pos", "int64", ()),
            TensorSpec("y", "float32", (1, width)),
        ),
        results=1,
        phases=(
            Phase(lambda buffers, thread, threads: _partial_results(spec, buffers, thread, threads)),
            Phase(lambda buffers, _thread, threads: _merge(spec, buffers, threads), split=False),
        ),
        scratch=(
            TensorSpec("tops", "float32", (THREADS, spec.heads)),
            TensorSpec("totals", "float32", (THREADS, spec.heads)),
            TensorSpec("outputs", "float32", (THREADS, width)),
        ),
    )


def _partial_results(spec: AttentionSpec, buffers: Mapping[str, Any], thread: Any, threads: Any) -> None:
    """What one thread's run of (head, chunk) pairs adds up to; heads it does not touch come out as empty sums."""
    cache, group = spec.cache, spec.group
    tile = Tile.fit(group, spec.lanes, _chunk(cache, spec.lanes))
    end = T.Bind(buffers["pos"] + 1)
    seen = T.Bind(T.max(end - spec.window, T.int64(0)) if spec.window else T.int64(0))
    origin = T.Bind(align_down(cache, seen))
    chunks = T.Bind(ceildiv(end - origin, tile.chunk))
    allowed = Range(end=lambda _: end, first=(lambda _: seen) if spec.window else None)
    run_start, run_end = (T.Bind(bound) for bound in share(chunks * cache.kv_heads, thread, threads))
    slot = T.int64(thread) if isinstance(thread, int) else thread
    align = BLOCK if cache.is_float else TOKENS
    block = DecodeBlock(tile, cache, spec.scale, spec.softcap, align, relative=not cache.value.is_float)
    reader = _Reader(spec, buffers, tile)
    with loop(cache.kv_heads) as head:
        start = T.Bind(T.max(run_start - head * chunks, T.int64(0)))
        stop = T.Bind(T.min(run_end - head * chunks, chunks))
        with T.If(start < stop):
            with T.Then():
                block.begin()
                first_block = T.Bind(T.floordiv(origin, T.int64(TOKENS)))
                last_block = ceildiv(T.min(origin + stop * tile.chunk, end), TOKENS)
                next_head = T.if_then_else(run_end > (head + 1) * chunks, head + 1, head)
                reader.start(block, Blocks(head, T.Bind(next_head), first_block, T.Bind(last_block)))
                with loop(stop - start, start=start) as chunk:
                    first = T.Bind(origin + chunk * tile.chunk)
                    block.advance(reader, reader, allowed, first, T.min(first + tile.chunk, end))
                with loop(group) as r:
                    at = T.Bind(head * group + r)
                    T.buffer_store(buffers["tops"], block.top[r], [slot, at])
                    T.buffer_store(buffers["totals"], block.sum_of(r), [slot, at])

                    def keep(offset: Any, n: int) -> None:
                        value = load(block.output, [r, offset], n)
                        store(buffers["outputs"], value, [slot, at * cache.value_dim + offset], n)

                    for_spans(cache.value_dim, spec.lanes, keep)
            with T.Else(), loop(group) as r:
                at = T.Bind(head * group + r)
                T.buffer_store(buffers["tops"], T.float32(LOWEST), [slot, at])
                T.buffer_store(buffers["totals"], T.float32(0), [slot, at])


def _chunk(cache: CacheSpec, lanes: int) -> int:
    """Keys of a chunk: of packed caches as many as PACKED_CHUNK_BYTES hold, a power of two."""
    if cache.is_float:
        return CHUNKS[lanes]
    chunk = PACKED_CHUNK
    while 2 * chunk * cache.token_bytes <= PACKED_CHUNK_BYTES * cache.kv_heads:
        chunk *= 2
    return chunk


class _Reader:
    """How a thread reads the caches of one head: packed ones by byte dot products, float ones as floats."""

    def __init__(self, spec: AttentionSpec, buffers: Mapping[str, Any], tile: Tile) -> None:
        self.spec, self.buffers = spec, buffers
        self._run: Any = None
        cache, isa = spec.cache, spec.isa
        packed_keys, packed_values = cache.packed_keys, cache.packed_values
        self._keys = None if packed_keys is None else IntegerKeys(packed_keys, buffers["k_cache"], tile, isa)
        self._values = None if packed_values is None else IntegerValues(packed_values, buffers["v_cache"], tile, isa)

    def start(self, block: DecodeBlock, run: Blocks) -> None:
        """Start the rows of the query group of ``run.head``."""
        spec, q, width = self.spec, self.buffers["q"], self.spec.cache.head_dim
        self._run = run
        first = T.Bind(run.head * spec.group)
        if self._keys is None:
            block.start(T.int64(spec.group), lambda r, d: q[0, (first + r) * width + d])
        else:
            self._keys.start(spec.group, block.query_scale, lambda r, d, n: load(q, [0, (first + r) * width + d], n))

    def score(self, block: DecodeBlock, first: Any, tokens: Any) -> None:
        if self._keys is not None:
            self._keys.score(block, self._run, first, tokens)
            return
        end = T.min(first + tokens, self.buffers["pos"] + 1)
        block.score(self._floats(), T.int64(block.tile.groups), first, T.floordiv(tokens, T.int64(BLOCK)), end)

    def accumulate(self, block: DecodeBlock, first: Any, tokens: Any, known: Any) -> None:
        if self._values is not None:
            self._values.accumulate(block, self._run, first, tokens, known)
            return
        block.fade_outputs()
        last = self.buffers["pos"]
        read_from: Any = T.int64(0)
        if self.spec.window:
            read_from = T.Bind(T.max(last + 1 - self.spec.window - first, T.int64(0)))
        block.accumulate(self._floats(), T.int64(block.tile.groups), first, read_from, known, last)

    def _floats(self) -> Keys:
        cache, k_cache, v_cache = self.spec.cache, self.buffers["k_cache"], self.buffers["v_cache"]
        head = self._run.head
        return Keys(
            key=lambda b, d, lane, n: load_float(k_cache, [head, b, d, T.int64(lane)], n),
            blocks=T.int64(cache.capacity // BLOCK),
            value=lambda t, offset, n: load_float(v_cache, [head, t, T.int64(offset)], n),
            ahead=_ahead(self.spec, k_cache, v_cache, head) if cache.is_float else None,
        )


def _merge(spec: AttentionSpec, buffers: Mapping[str, Any], threads: Any) -> None:
    """Add up what ``threads`` threads left, in the order of the threads."""
    slots = T.int64(threads) if isinstance(threads, int) else threads
    width = spec.cache.value_dim
    tops, totals, outputs = buffers["tops"], buffers["totals"], buffers["outputs"]
    with loop(spec.heads) as head:
        scalars = Registers(2, "float32")
        scalars[0] = T.float32(LOWEST)
        with loop(slots) as slot:
            scalars[0] = T.max(scalars[0], tops[slot, head])
        top = hold(scalars[0])
        scalars[1] = T.float32(0)
        with loop(slots) as slot:
            scalars[1] = scalars[1] + totals[slot, head] * exp2(tops[slot, head] - top, 1, fine=True)
        inverse = hold(T.float32(1) / scalars[1])
        pieces = spans(width, spec.lanes)
        for first in range(0, len(pieces), MERGED_VECTORS):
            columns = pieces[first : first + MERGED_VECTORS]
            sums = {piece: Registers(1, vector("float32", piece[1])) for piece in columns}
            for piece in columns:
                sums[piece][0] = splat(0.0, piece[1])
            # Empty sums are left out: their outputs were not written.
            with loop(slots) as slot, T.If(totals[slot, head] > T.float32(0)), T.Then():
                weight = hold(exp2(tops[slot, head] - top, 1, fine=True) * inverse)
                for offset, n in columns:
                    value = load(outputs, [slot, head * width + offset], n)
                    sums[offset, n][0] = sums[offset, n][0] + value * splat(weight, n)
            for offset, n in columns:
                store(buffers["y"], sums[offset, n][0], [T.int64(0), head * width + offset], n)


def _ahead(spec: AttentionSpec, key_cache: Any, value_cache: Any, head: Any) -> Ahead:
    cache = spec.cache
    key_line, value_line = (
        LINE_BYTES // (2 if dtype == "float16" else 4) for dtype in (cache.keys.dtype, cache.values.dtype)
    )

    def key(token: Any, line: int) -> None:
        # The keys of 16 tokens are one piece of memory: a 16th of it is asked for per token.
        element = T.floormod(token, T.int64(BLOCK)) * cache.head_dim + line * key_line
        block = T.floordiv(token, T.int64(BLOCK))
        prefetch(key_cache[head, block, T.floordiv(element, T.int64(BLOCK)), T.int64(0)])

    def value(token: Any, line: Any) -> None:
        prefetch(value_cache[head, token, line * value_line])

    return Ahead(key, -(-cache.head_dim // key_line), value, -(-cache.value_dim // value_line))
