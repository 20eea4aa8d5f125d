"""The heart of every attention kernel: a block of query rows against one key/value head, chunk of keys by chunk.

A *row* is one query token of one query head. All heads of a group, and several tokens, are rows of one block, so that
each loaded key or value serves all of them. For every chunk of keys (online softmax, Milakov and Gimelshein 2018)::

    s[r, t] = q[r] . k[t]                          register tile: some rows x some vectors of tokens
    m' = max(m, max_t s);  p = exp(s - m');  l = l exp(m - m') + sum_t p
    o[r] = o[r] exp(m - m') + sum_t p[r, t] v[t]   register tile: some rows x some vectors of value elements

Only the scores of one chunk exist at a time. Keys outside a row's range are replaced by the lowest score, never
multiplied by zero, and value rows outside the block's range are not read: the cache may hold anything there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, load, loop, store, vector
from bitwright.codegen.cache import BLOCK
from bitwright.codegen.vectormath import LOWEST, add, exp, for_spans, hold, maximum, reduce_lanes, spans, splat, tanh


def ceildiv(value: Any, divisor: int) -> Any:
    """Rounded-up quotient of a non-negative int64 expression."""
    return T.floordiv(value + T.int64(divisor - 1), T.int64(divisor))


@dataclass(frozen=True)
class Tile:
    """Sizes of a block, fixed when the kernel is built.

    Attributes:
        rows: rows of one register tile.
        groups: register tiles in a block: it has up to groups * rows rows.
        vectors: vectors of tokens, or of value elements, of a register tile.
        chunk: keys whose scores are held at a time; a multiple of the tokens of a register tile.
        lanes: float32 lanes of a vector.
    """

    rows: int
    groups: int
    vectors: int
    chunk: int
    lanes: int

    @property
    def tokens(self) -> int:
        """Tokens of one register tile of scores."""
        return self.vectors * self.lanes

    @classmethod
    def fit(cls, rows: int, lanes: int, chunk: int) -> Tile:
        """A tile for blocks of ``rows`` rows: accumulators fill 16 (lanes 16: 32) registers beside operands."""
        accumulators = 24 if lanes == 16 else 12
        groups = -(-rows // 6)
        tile_rows = -(-rows // groups)
        vectors = 1
        while vectors * 2 * tile_rows <= accumulators and vectors * 2 <= 8:
            vectors *= 2
        while vectors * lanes < BLOCK:
            vectors *= 2
        return cls(tile_rows, groups, vectors, max(chunk, vectors * lanes), lanes)


@dataclass(frozen=True)
class Keys:
    """Where a block finds the keys and values of its head.

    Attributes:
        key: (block, d, first lane, lanes) -> float32 lanes of keys: element d of tokens block * 16 + first lane ...
        blocks: key blocks that exist; a block index is clamped below it before ``key`` is asked.
        value: (token, offset, lanes) -> float32 lanes of a value row.
    """

    key: Callable[[Any, Any, int, int], Any]
    blocks: Any
    value: Callable[[Any, Any, int], Any]


@dataclass(frozen=True)
class Range:
    """Keys that a row may see: ``first(row) <= key < end(row)``; both bounds grow with the row.

    ``first`` is None where there is no window: every row starts at key 0.
    """

    end: Callable[[Any], Any]
    first: Callable[[Any], Any] | None = None


class Block:
    """State of one block in local memory and the code that advances it. Make it inside the loop that owns it."""

    def __init__(self, tile: Tile, head_dim: int, value_dim: int, scale: float, softcap: float) -> None:
        self.tile, self.head_dim, self.value_dim, self.softcap = tile, head_dim, value_dim, softcap
        # With softcap the query carries scale / softcap, and the scores are multiplied by softcap after the tanh.
        self.query_scale = scale / softcap if softcap else scale
        total = tile.groups * tile.rows
        self.query = T.alloc_buffer((tile.groups, head_dim, tile.rows), "float32")
        self.scores = T.alloc_buffer((total, tile.chunk), "float32")
        self.top = T.alloc_buffer((total,), "float32")
        self.total = T.alloc_buffer((total,), "float32")
        self.output = T.alloc_buffer((total, value_dim), "float32")

    def start(self, rows: Any, query: Callable[[Any, Any], Any]) -> Any:
        """Fill the state for ``rows`` rows whose elements are ``query(row, d)``; returns the register tiles in use."""
        tile = self.tile
        groups = T.Bind(ceildiv(rows, tile.rows))
        with loop(rows) as r:
            group, lane = T.floordiv(r, T.int64(tile.rows)), T.floormod(r, T.int64(tile.rows))
            with loop(self.head_dim) as d:
                T.buffer_store(self.query, query(r, d) * T.float32(self.query_scale), [group, d, lane])
        # Rows that only fill up the last tile compute with zeros, and nobody reads them.
        with loop(groups * tile.rows - rows, start=rows) as r:
            group, lane = T.floordiv(r, T.int64(tile.rows)), T.floormod(r, T.int64(tile.rows))
            with loop(self.head_dim) as d:
                T.buffer_store(self.query, T.float32(0), [group, d, lane])
        with loop(groups * tile.rows) as r:
            T.buffer_store(self.top, T.float32(LOWEST), [r])
            T.buffer_store(self.total, T.float32(0), [r])
            for_spans(self.value_dim, tile.lanes, lambda o, n: store(self.output, splat(0.0, n), [r, o], n))
        return groups

    def visit(self, keys: Keys, rows: Any, groups: Any, allowed: Range, first: Any, end: Any) -> None:
        """Advance ``rows`` rows over keys ``first .. end-1``: at most a chunk, ``first`` a multiple of 16.

        ``end`` is at most ``allowed.end`` of the last row.
        """
        blocks = T.Bind(ceildiv(end - first, BLOCK))
        tokens = T.Bind(blocks * BLOCK)
        self._score(keys, groups, first, blocks)
        if self.softcap:
            self._cap(rows, tokens)
        self._mask(rows, allowed, first, tokens)
        with loop(rows) as r:
            self._softmax(r, tokens)
        read_from: Any = T.int64(0)
        if allowed.first is not None:
            read_from = T.Bind(T.max(allowed.first(T.int64(0)) - first, T.int64(0)))
        self._accumulate(keys, groups, first, read_from, end - first)

    def _score(self, keys: Keys, groups: Any, first: Any, blocks: Any) -> None:
        tile, lanes = self.tile, self.tile.lanes
        first_block = T.Bind(T.floordiv(first, T.int64(BLOCK)))
        per_block = BLOCK // lanes
        with loop(ceildiv(blocks, tile.tokens // BLOCK)) as step:
            tile_blocks = [
                # A tile may be wider than what is left: its further blocks repeat the last one, and are not read again.
                T.Bind(T.min(first_block + step * (tile.tokens // BLOCK) + b, keys.blocks - 1))
                for b in range(tile.tokens // BLOCK)
            ]
            with loop(groups) as group:
                sums = Registers(tile.rows * tile.vectors, vector("float32", lanes))
                for index in range(tile.rows * tile.vectors):
                    sums[index] = splat(0.0, lanes)
                with loop(self.head_dim) as d:
                    loaded = [
                        hold(keys.key(tile_blocks[v // per_block], d, v % per_block * lanes, lanes))
                        for v in range(tile.vectors)
                    ]
                    for r in range(tile.rows):
                        element = hold(splat(self.query[group, d, r], lanes))
                        for v in range(tile.vectors):
                            index = r * tile.vectors + v
                            sums[index] = sums[index] + element * loaded[v]
                for r in range(tile.rows):
                    for v in range(tile.vectors):
                        value = sums[r * tile.vectors + v]
                        at = [group * tile.rows + r, step * tile.tokens + v * lanes]
                        store(self.scores, value, at, lanes)

    def _cap(self, rows: Any, tokens: Any) -> None:
        lanes = self.tile.lanes
        with loop(rows) as r, loop(T.floordiv(tokens, T.int64(lanes))) as step:
            at = [r, step * lanes]
            store(self.scores, tanh(load(self.scores, at, lanes), lanes) * splat(self.softcap, lanes), at, lanes)

    def _mask(self, rows: Any, allowed: Range, first: Any, tokens: Any) -> None:
        """Overwrite scores outside the rows' ranges; most chunks lie inside all of them and skip this."""
        lanes = self.tile.lanes
        needed = first + tokens > allowed.end(T.int64(0))
        if allowed.first is not None:
            needed = T.Or(needed, first < allowed.first(rows - 1))
        with T.If(needed), T.Then(), loop(rows) as r:
            end = T.Bind(T.cast(allowed.end(r) - first, "int32"))
            begin = None if allowed.first is None else T.Bind(T.cast(allowed.first(r) - first, "int32"))
            with loop(T.floordiv(tokens, T.int64(lanes))) as step:
                index = T.Bind(T.ramp(T.cast(step * lanes, "int32"), T.int32(1), lanes))
                score = load(self.scores, [r, step * lanes], lanes)
                value = T.Select(index < T.broadcast(end, lanes), score, splat(LOWEST, lanes))
                if begin is not None:
                    value = T.Select(index >= T.broadcast(begin, lanes), value, splat(LOWEST, lanes))
                store(self.scores, value, [r, step * lanes], lanes)

    def _softmax(self, r: Any, tokens: Any) -> None:
        lanes = self.tile.lanes
        steps = T.Bind(T.floordiv(tokens, T.int64(lanes)))
        state = Registers(1, vector("float32", lanes))
        state[0] = load(self.scores, [r, T.int64(0)], lanes)
        with loop(steps - 1, start=T.int64(1)) as step:
            state[0] = T.max(state[0], load(self.scores, [r, step * lanes], lanes))
        top = hold(T.max(reduce_lanes(state[0], lanes, maximum), self.top[r]))
        keep = exp(self.top[r] - top, 1, nonpositive=True)
        state[0] = splat(0.0, lanes)
        with loop(steps) as step:
            weight = exp(load(self.scores, [r, step * lanes], lanes) - splat(top, lanes), lanes, nonpositive=True)
            store(self.scores, weight, [r, step * lanes], lanes)
            state[0] = state[0] + weight
        T.buffer_store(self.total, self.total[r] * keep + reduce_lanes(state[0], lanes, add), [r])
        T.buffer_store(self.top, top, [r])

        def fade(offset: Any, piece: int) -> None:
            store(self.output, load(self.output, [r, offset], piece) * splat(keep, piece), [r, offset], piece)

        for_spans(self.value_dim, lanes, fade)

    def _accumulate(self, keys: Keys, groups: Any, first: Any, begin: Any, end: Any) -> None:
        tile = self.tile
        pieces = spans(self.value_dim, tile.lanes)
        for column in range(0, len(pieces), tile.vectors):
            columns = pieces[column : column + tile.vectors]
            with loop(groups) as group:
                sums = {piece: Registers(tile.rows, vector("float32", piece[1])) for piece in columns}
                for r in range(tile.rows):
                    for piece in columns:
                        sums[piece][r] = load(self.output, [group * tile.rows + r, piece[0]], piece[1])
                with loop(end - begin, start=begin) as t:
                    loaded = [hold(keys.value(first + t, *piece)) for piece in columns]
                    for r in range(tile.rows):
                        weight = hold(self.scores[group * tile.rows + r, t])
                        for piece, value in zip(columns, loaded, strict=True):
                            sums[piece][r] = sums[piece][r] + splat(weight, piece[1]) * value
                for r in range(tile.rows):
                    for piece in columns:
                        store(self.output, sums[piece][r], [group * tile.rows + r, piece[0]], piece[1])
