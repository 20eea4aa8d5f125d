"""Decode attention: one query token against the whole cache.

The work is a line of (key/value head, chunk) pairs; each thread takes an equal run of it, so that any number of heads
balances on any number of threads. A thread leaves (maximum, sum, output) per query head; then they are merged.
Where a cache keeps recent tokens, they are the first chunk of their head, and packed ones end before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Ahead, Keys, Range, Tile, ceildiv
from bitwright.codegen.attention.decode_block import DecodeBlock
from bitwright.codegen.attention.integer_keys import IntegerKeys
from bitwright.codegen.attention.integer_values import IntegerValues
from bitwright.codegen.attention.recent import cached_run, run_of
from bitwright.codegen.attention.source import FloatKeys, FloatValues, align_down, joined
from bitwright.codegen.attention.spec import AttentionSpec
from bitwright.codegen.builder import Registers, load, loop, prefetch, store, vector
from bitwright.codegen.cache import BLOCK, CacheSpec
from bitwright.codegen.cache_layout import TOKENS
from bitwright.codegen.cache_read import Blocks
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.team import THREADS, Phase, TeamKernel, share
from bitwright.codegen.vectormath import LOWEST, exp2, for_spans, hold, spans, splat

CHUNKS = {16: 64, 8: 16, 4: 16}
"""Keys of a chunk, by the lanes of a vector: so few that its keys and values and the prefetched next ones share L1.
Measured with 16 lanes (Zen 5), 64 beat 128 by a quarter from DRAM and are within 2 % of 512 in cache; with 8 (Zen 3),
16 beat 64 by a fifth from DRAM, where long contexts lie, and are a seventh slower in L3."""
SECOND_CACHE_CHUNK = 128
"""Where prefetches go to the second cache. On a Zen 4 from DRAM, of read bandwidth, one thread and two: 64 keys and the
first cache 75 and 76 %, 64 and the second 73 and 76 %, 128 and the second 82 and 82 %, 256 79 %."""
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
    tile = Tile.fit(group, spec.lanes, _chunk(cache, spec.isa))
    end = T.Bind(buffers["pos"] + 1)
    seen = T.Bind(T.max(end - spec.window, T.int64(0)) if spec.window else T.int64(0))
    origin = T.Bind(align_down(cache, seen))
    recent = run_of(cache, buffers["pos"]) if cache.recent else end
    coded_end = T.Bind(T.max(recent, origin))
    ahead = 1 if cache.recent else 0
    chunks = T.Bind(ceildiv(coded_end - origin, tile.chunk) + ahead)
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
                last_block = ceildiv(T.min(origin + (stop - ahead) * tile.chunk, coded_end), TOKENS)
                next_head = T.if_then_else(run_end > (head + 1) * chunks, head + 1, head)
                reader.start(block, Blocks(head, T.Bind(next_head), first_block, T.Bind(last_block)))
                if cache.recent:
                    with T.If(start == 0), T.Then():
                        _attend_run(reader, block, allowed, end)
                first_chunk = T.Bind(T.max(start - ahead, T.int64(0)))
                with loop(stop - ahead - first_chunk, start=first_chunk) as chunk:
                    first = T.Bind(origin + chunk * tile.chunk)
                    block.advance(reader, reader, allowed, first, T.min(first + tile.chunk, coded_end))
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


def _attend_run(reader: _Reader, block: DecodeBlock, allowed: Range, end: Any) -> None:
    """Attend to the recent tokens, which end at ``end``: as floats, before anything else."""
    cache, chunk = reader.spec.cache, block.tile.chunk
    recent = reader.recent(block)
    first_of_all: Any = run_of(cache, end - 1)
    if allowed.first is not None:
        first_of_all = T.max(first_of_all, align_down(cache, allowed.first(T.int64(0))))
    first_of_all = T.Bind(first_of_all)
    if cache.recent <= chunk:
        block.advance(recent, recent, allowed, first_of_all, end, relative=False)
        return
    with loop(ceildiv(end - first_of_all, chunk)) as part:
        first = T.Bind(first_of_all + part * chunk)
        block.advance(recent, recent, allowed, first, T.min(first + chunk, end), relative=False)


def _float_level(isa: Isa) -> int:
    """The cache that float keys and values are asked into: the nearest one where vectors are short and arithmetic
    takes long."""
    return isa.prefetch_level if isa.lanes == 16 else 1


def _chunk(cache: CacheSpec, isa: Isa) -> int:
    """Keys of a chunk: of packed caches as many as PACKED_CHUNK_BYTES hold, a power of two."""
    if cache.is_float:
        return SECOND_CACHE_CHUNK if _float_level(isa) == 2 else CHUNKS[isa.lanes]
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
        spec, query = self.spec, self._query(run.head)
        self._run = run
        if self._keys is None:
            block.start(T.int64(spec.group), lambda r, d: query(r, d, 1))
        else:
            self._keys.start(spec.group, block.query_scale, query)

    def score(self, block: DecodeBlock, first: Any, tokens: Any) -> None:
        if self._keys is not None:
            self._keys.score(block, self._run, first, tokens)
        else:
            self._floats().score(block, first, tokens)

    def accumulate(self, block: DecodeBlock, first: Any, tokens: Any, known: Any) -> None:
        if self._values is not None:
            self._values.accumulate(block, self._run, first, tokens, known)
        else:
            self._floats().accumulate(block, first, tokens, known)

    def recent(self, block: DecodeBlock) -> _FloatReader:
        """What reads the recent tokens of the head. It starts the block: nothing else may have been attended to."""
        query = self._query(self._run.head)
        if self._keys is not None:
            block.start(T.int64(self.spec.group), lambda r, d: query(r, d, 1))
        caches = self.buffers["k_cache"], self.buffers["v_cache"]
        keys = cached_run(self.spec.cache, self.spec.lanes, self._run.head, *caches)
        return _FloatReader(self.spec, self.buffers["pos"], keys)

    def _query(self, head: Any) -> Callable[[Any, Any, int], Any]:
        first, width = T.Bind(head * self.spec.group), self.spec.cache.head_dim
        return lambda r, d, n: load(self.buffers["q"], [0, (first + r) * width + d], n)

    def _floats(self) -> _FloatReader:
        cache, k_cache, v_cache = self.spec.cache, self.buffers["k_cache"], self.buffers["v_cache"]
        keys = joined(cache, FloatKeys(k_cache), FloatValues(v_cache), self._run.head)
        ahead = _ahead(self.spec, k_cache, v_cache, self._run.head) if cache.is_float else None
        return _FloatReader(self.spec, self.buffers["pos"], replace(keys, ahead=ahead))


@dataclass(frozen=True)
class _FloatReader:
    """Reads keys and values as floats, of positions up to ``last``."""

    spec: AttentionSpec
    last: Any
    keys: Keys

    def score(self, block: DecodeBlock, first: Any, tokens: Any) -> None:
        end = T.min(first + tokens, self.last + 1)
        block.score(self.keys, T.int64(block.tile.groups), first, T.floordiv(tokens, T.int64(BLOCK)), end)

    def accumulate(self, block: DecodeBlock, first: Any, tokens: Any, known: Any) -> None:
        block.fade_outputs()
        read_from: Any = T.int64(0)
        if self.spec.window:
            read_from = T.Bind(T.max(self.last + 1 - self.spec.window - first, T.int64(0)))
        block.accumulate(self.keys, T.int64(block.tile.groups), first, read_from, known, self.last)


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
    cache, level = spec.cache, _float_level(spec.isa)
    key_line, value_line = (
        LINE_BYTES // (2 if dtype == "float16" else 4) for dtype in (cache.keys.dtype, cache.values.dtype)
    )

    def key(token: Any, line: int) -> None:
        # The keys of 16 tokens are one piece of memory: a 16th of it is asked for per token.
        element = T.floormod(token, T.int64(BLOCK)) * cache.head_dim + line * key_line
        block = T.floordiv(token, T.int64(BLOCK))
        prefetch(key_cache[head, block, T.floordiv(element, T.int64(BLOCK)), T.int64(0)], level)

    def value(token: Any, line: Any) -> None:
        prefetch(value_cache[head, token, line * value_line], level)

    return Ahead(key, -(-cache.head_dim // key_line), value, -(-cache.value_dim // value_line))
