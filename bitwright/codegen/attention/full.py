"""Attention of an encoder: every token sees every token, keys and values come straight from the projections.

The keys are first copied into the cache's layout (16 tokens side by side), n x kv_heads x D floats of scratch.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Block, Keys, Range, Tile, ceildiv
from bitwright.codegen.attention.prefill import CHUNK, PARALLEL_SCORES, for_parts, query_tokens, write_rows
from bitwright.codegen.attention.spec import FullAttentionSpec
from bitwright.codegen.builder import kernel, load, loop, symbol
from bitwright.codegen.cache import BLOCK


def build(spec: FullAttentionSpec) -> Any:
    """PrimFunc: q f32[n, heads * D], k f32[n, kv_heads * D], v f32[n, kv_heads * Dv], y f32[n, heads * Dv]."""
    group, head_dim, value_dim = spec.group, spec.head_dim, spec.value_dim
    tokens_per_block = query_tokens(group)
    tile = Tile.fit(tokens_per_block * group, spec.lanes, CHUNK)
    with kernel(spec.name) as k:
        n = symbol("n")
        q = k.tensor("q", (n, spec.heads * head_dim), "float32")
        key_rows = k.tensor("k", (n, spec.kv_heads * head_dim), "float32")
        values = k.tensor("v", (n, spec.kv_heads * value_dim), "float32")
        y = k.tensor("y", (n, spec.heads * value_dim), "float32")
        blocks = T.Bind(ceildiv(n, BLOCK))
        packed = T.alloc_buffer((blocks, spec.kv_heads, head_dim, BLOCK), "float32")
        parallel = n * n * spec.heads >= PARALLEL_SCORES

        def pack(b: Any) -> None:
            with loop(spec.kv_heads) as head, loop(head_dim) as d, loop(BLOCK) as lane:
                # The last block repeats the last token: its scores are masked.
                token = T.min(b * BLOCK + lane, n - 1)
                T.buffer_store(packed, key_rows[token, head * head_dim + d], [b, head, d, lane])

        def unit(u: Any) -> None:
            head = T.Bind(T.floormod(u, T.int64(spec.kv_heads)))
            token = T.Bind(T.floordiv(u, T.int64(spec.kv_heads)) * tokens_per_block)
            rows = T.Bind(T.min(n - token, T.int64(tokens_per_block)) * group)

            def place(r: Any, width: int) -> tuple[Any, Any]:
                lane = T.floormod(r, T.int64(group))
                return token + T.floordiv(r, T.int64(group)), (head * group + lane) * width

            def query(r: Any, d: Any) -> Any:
                row, column = place(r, head_dim)
                return q[row, column + d]

            block = Block(tile, head_dim, value_dim, spec.scale, spec.softcap)
            groups = block.start(rows, query)
            keys = Keys(
                key=lambda b, d, lane, lanes: load(packed, [b, head, d, T.int64(lane)], lanes),
                blocks=blocks,
                value=lambda t, offset, lanes: load(values, [t, head * value_dim + offset], lanes),
            )
            with loop(ceildiv(n, tile.chunk)) as chunk:
                first = T.Bind(chunk * tile.chunk)
                block.visit(keys, rows, groups, Range(end=lambda _: n), first, T.min(first + tile.chunk, n))
            write_rows(block, y, rows, lambda r: place(r, value_dim))

        for_parts(spec.threads, blocks, parallel, pack)
        for_parts(spec.threads, T.Bind(ceildiv(n, tokens_per_block) * spec.kv_heads), parallel, unit)
    return k.func
