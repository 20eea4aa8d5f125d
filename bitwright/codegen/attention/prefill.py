"""Prefill attention: a symbolic number of query tokens against the cache, causal.

Units are (block of query tokens, key/value head), ordered by cost; parts take them in turn, so causal work balances.
Products are those of 16-bit integers where caches are of 16 bits or fewer and the target has an instruction for them,
else of single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Block, Keys, Range, Tile, ceildiv
from bitwright.codegen.attention.recent import Appended, appended_run, run_of
from bitwright.codegen.attention.source import align_down, cached_keys
from bitwright.codegen.attention.spec import AttentionSpec
from bitwright.codegen.attention.word_block import WordBlock, WordTile
from bitwright.codegen.attention.word_dot import multiplies_words
from bitwright.codegen.builder import kernel, load, loop, store, symbol
from bitwright.codegen.cache import CacheSpec
from bitwright.codegen.stack import aligned_stack
from bitwright.codegen.vectormath import for_spans, hold, splat

CHUNK = 64
ROWS = 48
"""Rows of a block: enough to pay for loading and widening a key, few enough that the block's state stays in L1."""
WORD_ROWS = 192
"""Rows of a block in 16-bit integers, whose bands have a turn each: more of them share what converting keys costs."""
WORD_BYTES = 40 * 1024
"""Bytes of keys and values of a chunk that share L1 with the rows of a band."""
PARALLEL_SCORES = 4096
"""Scores (rows x keys) from which a parallel launch pays on two cores."""


def query_tokens(group: int, rows: int = ROWS) -> int:
    """Query tokens of a block of about ``rows`` rows when ``group`` heads share it."""
    return max(rows // group, 1)


def word_chunk(cache: CacheSpec) -> int:
    """Keys of a chunk in 16-bit integers: twice as many as of floats where L1 has room."""
    return 2 * CHUNK if 4 * CHUNK * (cache.head_dim + cache.value_dim) <= WORD_BYTES else CHUNK


def multiplies_integers(spec: AttentionSpec) -> bool:
    """Does the kernel multiply words? Caches of single precision ask for its products."""
    return multiplies_words(spec.isa) and "float32" not in (spec.cache.keys.dtype, spec.cache.values.dtype)


def write_rows(block: Block, y: Any, rows: Any, place: Any) -> None:
    """Divide the rows' outputs by their sums and store them; ``place(row)`` gives (token, first column)."""
    with loop(rows) as r:
        inverse = hold(T.float32(1) / block.total[r])
        token, column = place(r)

        def write(offset: Any, n: int) -> None:
            store(y, load(block.output, [r, offset], n) * splat(inverse, n), [token, column + offset], n)

        for_spans(block.value_dim, block.tile.lanes, write)


def for_parts(threads: int, units: Any, parallel: Any, unit: Any) -> None:
    """Emit ``unit(u)`` for all units: dealt to ``threads`` parallel parts if ``parallel``, else serially.

    Every second turn is dealt backwards: costs grow with the units, and the last part would always get the dearest.
    """
    if threads == 1:
        with aligned_stack(), loop(units) as u:
            unit(u)
        return
    with T.If(parallel):
        with T.Then(), loop(threads, "parallel") as part, loop(ceildiv(units, threads)) as turn:
            place = T.Bind(T.if_then_else(turn % 2 == 0, part, threads - 1 - part))
            u = T.Bind(turn * threads + place)
            with T.If(u < units), T.Then():
                unit(u)
        with T.Else(), aligned_stack(), loop(units) as u:
            unit(u)


def build(spec: AttentionSpec) -> Any:
    """PrimFunc: q f32[n, heads * D], k_cache, v_cache, pos i64, y f32[n, heads * Dv].

    With caches that keep recent tokens also, before ``pos``, the rows that k and v are columns of, f32[n, any]. A
    prompt that begins inside a run of such tokens must end in it.
    """
    cache, group, words = spec.cache, spec.group, multiplies_integers(spec)
    tokens_per_block = query_tokens(group, WORD_ROWS if words else ROWS)
    tile = Tile.fit(tokens_per_block * group, spec.lanes, CHUNK)
    chunk_size = word_chunk(cache) if words else tile.chunk
    with kernel(spec.name) as k:
        n = symbol("n")
        q = k.tensor("q", (n, spec.heads * cache.head_dim), "float32")
        key_cache = k.tensor("k_cache", cache.keys.shape, cache.keys.dtype)
        value_cache = k.tensor("v_cache", cache.values.shape, cache.values.dtype)
        rows_of = [
            k.tensor(name, (n, source.total), "float32")
            for name, source in zip(("k", "v"), spec.sources, strict=True)
            if spec.reads_rows
        ]
        pos = k.scalar("pos")
        y = k.tensor("y", (n, spec.heads * cache.value_dim), "float32")

        def unit(u: Any) -> None:
            head = T.Bind(T.floormod(u, T.int64(cache.kv_heads)))
            token = T.Bind(T.floordiv(u, T.int64(cache.kv_heads)) * tokens_per_block)
            tokens = T.Bind(T.min(n - token, T.int64(tokens_per_block)))
            rows = T.Bind(tokens * group)
            last = T.Bind(pos + token + tokens)

            def end(r: Any) -> Any:
                return pos + token + T.floordiv(r, T.int64(group)) + 1

            def first_seen(r: Any) -> Any:
                return T.max(end(r) - spec.window, T.int64(0))

            def place(r: Any, width: int) -> tuple[Any, Any]:
                lane = T.floormod(r, T.int64(group))
                return token + T.floordiv(r, T.int64(group)), (head * group + lane) * width

            def query(r: Any, d: Any, lanes: int) -> Any:
                row, column = place(r, cache.head_dim)
                return load(q, [row, column + d], lanes)

            attend: Callable[[Keys, Range, Any, Any], None]
            if words:
                dims = (cache.head_dim, cache.value_dim)
                word_tile = WordTile.fit(tokens_per_block * group, spec.isa, chunk_size)
                integers = WordBlock(word_tile, dims, spec.scale, spec.softcap, spec.isa)
                integers.start(rows, query)

                def attend(keys: Keys, allowed: Range, first: Any, stop: Any) -> None:
                    integers.visit(keys, rows, allowed, first, stop)
            else:
                block = Block(tile, cache.head_dim, cache.value_dim, spec.scale, spec.softcap)
                groups = block.start(rows, lambda r, d: query(r, d, 1))

                def attend(keys: Keys, allowed: Range, first: Any, stop: Any) -> None:
                    block.visit(keys, rows, groups, allowed, first, stop)

            def attend_to(keys: Keys, allowed: Range, origin: Any, stop: Any) -> None:
                with loop(ceildiv(stop - origin, chunk_size)) as chunk:
                    first = T.Bind(origin + chunk * chunk_size)
                    attend(keys, allowed, first, hold(T.min(first + chunk_size, stop)))

            keys = cached_keys(cache, chunk_size, spec.lanes, head, key_cache, value_cache)
            origin: Any = T.int64(0)
            if spec.window:
                origin = hold(align_down(cache, first_seen(T.int64(0))))
            seen = first_seen if spec.window else None
            if spec.reads_rows:

                def own_run(r: Any) -> Any:
                    return run_of(cache, end(r) - 1)

                def first_of_run(r: Any) -> Any:
                    return T.max(own_run(r), first_seen(r)) if spec.window else own_run(r)

                coded_end = hold(T.max(run_of(cache, last - 1), origin))
                attend_to(keys, Range(end=own_run, first=seen), origin, coded_end)
                appended = [
                    Appended(matrix, source.first, pos) for matrix, source in zip(rows_of, spec.sources, strict=True)
                ]
                recent = appended_run(cache, chunk_size, spec.lanes, head, (key_cache, value_cache), appended)
                first_recent = hold(align_down(cache, first_of_run(T.int64(0))))
                attend_to(recent, Range(end=end, first=first_of_run), first_recent, last)
            else:
                attend_to(keys, Range(end=end, first=seen), origin, last)
            if words:
                integers.write(y, rows, lambda r: place(r, cache.value_dim))
            else:
                write_rows(block, y, rows, lambda r: place(r, cache.value_dim))

        units = T.Bind(ceildiv(n, tokens_per_block) * cache.kv_heads)
        for_parts(spec.threads, units, n * spec.heads * (pos + n) >= PARALLEL_SCORES, unit)
    return k.func
