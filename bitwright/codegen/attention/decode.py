"""Decode attention: one query token against the whole cache.

The work is a line of (key/value head, chunk) pairs; each part takes an equal run of it, so that any number of heads
balances on any number of threads. A part leaves (maximum, sum, output) per query head; they are merged at the end.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Ahead, Block, Keys, Range, Tile, ceildiv
from bitwright.codegen.attention.spec import AttentionSpec
from bitwright.codegen.builder import Registers, kernel, load, loop, store
from bitwright.codegen.cache import BLOCK
from bitwright.codegen.vectormath import LOWEST, exp, for_spans, hold, load_float, splat

CHUNK = 64
"""Keys of a chunk. Small enough that its keys and values and the prefetched next ones share L1: measured, 64 beats 128
by a quarter from DRAM and is within 2 % of 512 in cache."""
LINE_BYTES = 64
PARALLEL_BYTES = 128 * 1024
"""Cache bytes read from which a parallel launch (about 4 us) pays on two cores."""


def _ahead(spec: AttentionSpec, key_cache: Any, value_cache: Any, head: Any) -> Ahead:
    cache = spec.cache
    key_line, value_line = (
        LINE_BYTES // (2 if dtype == "float16" else 4) for dtype in (cache.key_dtype, cache.value_dtype)
    )

    def key(token: Any, line: int) -> None:
        # The keys of 16 tokens are one piece of memory: a 16th of it is asked for per token.
        element = T.floormod(token, T.int64(BLOCK)) * cache.head_dim + line * key_line
        block = T.floordiv(token, T.int64(BLOCK))
        prefetch(key_cache[head, block, T.floordiv(element, T.int64(BLOCK)), T.int64(0)])

    def value(token: Any, line: Any) -> None:
        prefetch(value_cache[head, token, line * value_line])

    return Ahead(key, -(-cache.head_dim // key_line), value, -(-cache.value_dim // value_line))


def prefetch(element: Any) -> None:
    """Ask for the cache line of a tensor element (an LLVM hint that any target may ignore)."""
    arguments = (T.address_of(element), T.int32(0), T.int32(3), T.int32(1))  # read, keep in every level, data
    T.evaluate(T.call_llvm_intrin("llvm.prefetch", *arguments, dtype="void"))


def build(spec: AttentionSpec) -> Any:
    """PrimFunc: q f32[1, heads * D], k_cache, v_cache, pos i64, y f32[1, heads * Dv]."""
    cache, group, lanes = spec.cache, spec.group, spec.lanes
    tile = Tile.fit(group, lanes, CHUNK)
    token_bytes = cache.kv_heads * sum(
        dim * (2 if dtype == "float16" else 4)
        for dim, dtype in ((cache.head_dim, cache.key_dtype), (cache.value_dim, cache.value_dtype))
    )
    with kernel(spec.name) as k:
        q = k.tensor("q", (1, spec.heads * cache.head_dim), "float32")
        key_cache = k.tensor("k_cache", cache.key_shape, cache.key_dtype)
        value_cache = k.tensor("v_cache", cache.value_shape, cache.value_dtype)
        pos = k.scalar("pos")
        y = k.tensor("y", (1, spec.heads * cache.value_dim), "float32")
        end = T.Bind(pos + 1)
        seen = T.Bind(T.max(end - spec.window, T.int64(0)) if spec.window else T.int64(0))
        origin = T.Bind(T.floordiv(seen, T.int64(BLOCK)) * BLOCK)
        chunks = T.Bind(ceildiv(end - origin, tile.chunk))
        allowed = Range(end=lambda _: end, first=(lambda _: seen) if spec.window else None)
        tops = T.alloc_buffer((spec.threads, spec.heads), "float32")
        totals = T.alloc_buffer((spec.threads, spec.heads), "float32")
        outputs = T.alloc_buffer((spec.threads, spec.heads, cache.value_dim), "float32")

        def part(index: Any, parts: int) -> None:
            run_start = T.Bind(T.floordiv(index * (chunks * cache.kv_heads), T.int64(parts)))
            run_end = T.Bind(T.floordiv((index + 1) * (chunks * cache.kv_heads), T.int64(parts)))
            block = Block(tile, cache.head_dim, cache.value_dim, spec.scale, spec.softcap)
            with loop(cache.kv_heads) as head:
                start = T.Bind(T.max(run_start - head * chunks, T.int64(0)))
                stop = T.Bind(T.min(run_end - head * chunks, chunks))
                groups = block.start(T.int64(group), lambda r, d: q[0, (head * group + r) * cache.head_dim + d])
                keys = Keys(
                    key=lambda b, d, lane, n: load_float(key_cache, [head, b, d, T.int64(lane)], n),
                    blocks=T.int64(cache.capacity // BLOCK),
                    value=lambda t, offset, n: load_float(value_cache, [head, t, T.int64(offset)], n),
                    ahead=_ahead(spec, key_cache, value_cache, head),
                )
                with loop(T.max(stop - start, T.int64(0)), start=start) as chunk:
                    first = T.Bind(origin + chunk * tile.chunk)
                    block.visit(keys, T.int64(group), groups, allowed, first, T.min(first + tile.chunk, end))
                with loop(group) as r:
                    T.buffer_store(tops, block.top[r], [index, head * group + r])
                    T.buffer_store(totals, block.total[r], [index, head * group + r])

                    def keep(offset: Any, n: int) -> None:
                        store(outputs, load(block.output, [r, offset], n), [index, head * group + r, offset], n)

                    for_spans(cache.value_dim, lanes, keep)

        def merge(parts: int) -> None:
            with loop(spec.heads) as head:
                scalars = Registers(2, "float32")
                scalars[0] = T.float32(LOWEST)
                for p in range(parts):
                    scalars[0] = T.max(scalars[0], tops[p, head])
                top = hold(scalars[0])
                weights = [exp(tops[p, head] - top, 1, nonpositive=True) for p in range(parts)]
                scalars[1] = T.float32(0)
                for p in range(parts):
                    scalars[1] = scalars[1] + totals[p, head] * weights[p]
                inverse = hold(T.float32(1) / scalars[1])

                def combine(offset: Any, n: int) -> None:
                    terms = [load(outputs, [p, head, offset], n) * splat(weights[p], n) for p in range(parts)]
                    value = sum(terms[1:], terms[0]) * splat(inverse, n)
                    store(y, value, [T.int64(0), head * cache.value_dim + offset], n)

                for_spans(cache.value_dim, lanes, combine)

        if spec.threads == 1:
            part(T.int64(0), 1)
            merge(1)
        else:
            with T.If((end - seen) * token_bytes >= PARALLEL_BYTES):
                with T.Then():
                    with loop(spec.threads, "parallel") as index:
                        part(index, spec.threads)
                    merge(spec.threads)
                with T.Else():
                    part(T.int64(0), 1)
                    merge(1)
    return k.func
