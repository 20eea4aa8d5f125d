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


def add_outer_product(
    rows: int,
    widths: list[int],
    left: Callable[[int], Any],
    right: Callable[[int], Any],
    add_to: Callable[[int, int, Any], None],
) -> None:
    """Emit ``add_to(r, v, left(r) * right(v))`` for scalars left(r) and vectors right(v) of ``widths[v]`` lanes.

    The smaller side is loaded first and the other one operand at a time: no more fits 16 registers beside accumulators.
    """
    if rows <= len(widths):
        scalars = {(r, width): hold(splat(left(r), width)) for r in range(rows) for width in sorted(set(widths))}
        for v, width in enumerate(widths):
            vector_value = hold(right(v))
            for r in range(rows):
                add_to(r, v, scalars[r, width] * vector_value)
        return
    vectors = [hold(right(v)) for v in range(len(widths))]
    for r in range(rows):
        for width in sorted(set(widths)):
            scalar = hold(splat(left(r), width))
            for v in (v for v, other in enumerate(widths) if other == width):
                add_to(r, v, scalar * vectors[v])


# Rows of a register tile -> (vectors of tokens, partial sums along the head dimension, vectors of value elements).
# Accumulators, the smaller side of the tile and two operands in flight fit 16 registers (32 with 16 lanes), and
# there are enough accumulators to hide the latency of a fused multiply-add (8 to 12).
_SIXTEEN_REGISTERS = {1: (8, 1, 8), 2: (4, 1, 4), 3: (2, 2, 3), 4: (2, 1, 2), 5: (2, 1, 2), 6: (2, 1, 2)}
_THIRTY_TWO_REGISTERS = {1: (8, 1, 8), 2: (4, 1, 4), 3: (4, 1, 4), 4: (4, 1, 4), 5: (2, 1, 2), 6: (2, 1, 2)}
MAX_TILE_ROWS = 6


@dataclass(frozen=True)
class Tile:
    """Sizes of a block, fixed when the kernel is built.

    Attributes:
        rows: rows of one register tile.
        groups: register tiles in a block: it has up to groups * rows rows.
        key_vectors: vectors of tokens of a score tile: whole blocks of 16 tokens.
        split: partial sums along the head dimension.
        value_vectors: vectors of value elements of an output tile.
        chunk: keys whose scores are held at a time; a multiple of the tokens of a score tile.
        lanes: float32 lanes of a vector.
    """

    rows: int
    groups: int
    key_vectors: int
    split: int
    value_vectors: int
    chunk: int
    lanes: int

    @property
    def tokens(self) -> int:
        """Tokens of one score tile."""
        return self.key_vectors * self.lanes

    @classmethod
    def fit(cls, rows: int, lanes: int, chunk: int) -> Tile:
        """A tile for blocks of ``rows`` rows."""
        groups = -(-rows // MAX_TILE_ROWS)
        tile_rows = -(-rows // groups)
        table = _THIRTY_TWO_REGISTERS if lanes == 16 else _SIXTEEN_REGISTERS
        key_vectors, split, value_vectors = table[tile_rows]
        key_vectors = max(key_vectors, BLOCK // lanes)
        return cls(tile_rows, groups, key_vectors, split, value_vectors, max(chunk, key_vectors * lanes), lanes)


@dataclass(frozen=True)
class Ahead:
    """Prefetches that overlap memory with arithmetic: values while scoring, the next chunk's keys while summing values.

    Attributes:
        key: (token, line) -> None: asks for a cache line of the keys stored near ``token``.
        key_lines: lines that ``key`` is asked for per token.
        value: (token, line) -> None: asks for a cache line of the token's value row.
        value_lines: lines of a value row.
    """

    key: Callable[[Any, int], None]
    key_lines: int
    value: Callable[[Any, Any], None]
    value_lines: int


@dataclass(frozen=True)
class Keys:
    """Where a block finds the keys and values of its head.

    Attributes:
        key: (block, d, first lane, lanes) -> float32 lanes of keys: element d of tokens block * 16 + first lane ...
        blocks: key blocks that exist; a block index is clamped below it before ``key`` is asked.
        value: (token, offset, lanes) -> float32 lanes of a value row.
        prepare: (first, end) -> None: emits what makes keys and values ``first .. end-1``, a chunk, readable.
        ahead: prefetches, for kernels that wait for memory; None for those that compute.
        align: a chunk's ``first`` is a multiple of it; whole runs of so many tokens are scored.
    """

    key: Callable[[Any, Any, int, int], Any]
    blocks: Any
    value: Callable[[Any, Any, int], Any]
    prepare: Callable[[Any, Any], None] | None = None
    ahead: Ahead | None = None
    align: int = BLOCK


@dataclass(frozen=True)
class Range:
    """Keys that a row may see: ``first(row) <= key < end(row)``; both bounds grow with the row.

    ``first`` is None where there is no window: every row starts at key 0.
    """

    end: Callable[[Any], Any]
    first: Callable[[Any], Any] | None = None


class Block:
    """State of one block in local memory and the code that advances it. Make it inside the loop that owns it.

    ``unit``: scores are kept in this unit, that is, multiplied by it.
    """

    def __init__(
        self, tile: Tile, head_dim: int, value_dim: int, scale: float, softcap: float, unit: float = 1.0
    ) -> None:
        self.tile, self.head_dim, self.value_dim, self.softcap, self.unit = tile, head_dim, value_dim, softcap, unit
        # With softcap the query carries scale / softcap, and the scores are multiplied by softcap after the tanh.
        self.query_scale = scale / softcap if softcap else scale * unit
        total = tile.groups * tile.rows
        self.query = T.alloc_buffer((tile.groups, head_dim, tile.rows), "float32")
        self.scores = T.alloc_buffer((total, tile.chunk), "float32")
        self.padded = -(-total // tile.lanes) * tile.lanes
        self.top = T.alloc_buffer((self.padded,), "float32")
        self.total = T.alloc_buffer((total,), "float32")
        self.output = T.alloc_buffer((total, value_dim), "float32")

    def start(self, rows: Any, query: Callable[[Any, Any], Any]) -> Any:
        """Fill the state for ``rows`` rows whose elements are ``query(row, d)``; returns the register tiles in use."""
        tile = self.tile
        groups = self.clear(rows)
        with loop(rows) as r:
            group, lane = T.floordiv(r, T.int64(tile.rows)), T.floormod(r, T.int64(tile.rows))
            with loop(self.head_dim) as d:
                T.buffer_store(self.query, query(r, d) * T.float32(self.query_scale), [group, d, lane])
        # Rows that only fill up the last tile compute with zeros, and nobody reads them.
        with loop(groups * tile.rows - rows, start=rows) as r:
            group, lane = T.floordiv(r, T.int64(tile.rows)), T.floormod(r, T.int64(tile.rows))
            with loop(self.head_dim) as d:
                T.buffer_store(self.query, T.float32(0), [group, d, lane])
        return groups

    def clear(self, rows: Any) -> Any:
        """Forget what ``rows`` rows have seen; returns the register tiles in use."""
        tile = self.tile
        groups = T.Bind(ceildiv(rows, tile.rows))
        with loop(groups * tile.rows) as r:
            T.buffer_store(self.top, T.float32(LOWEST), [r])
            T.buffer_store(self.total, T.float32(0), [r])
            for_spans(self.value_dim, tile.lanes, lambda o, n: store(self.output, splat(0.0, n), [r, o], n))
        return groups

    def visit(self, keys: Keys, rows: Any, groups: Any, allowed: Range, first: Any, end: Any) -> None:
        """Advance ``rows`` rows over keys ``first .. end-1``: at most a chunk, ``first`` a multiple of ``keys.align``.

        ``end`` is at most ``allowed.end`` of the last row.
        """
        blocks = T.Bind(ceildiv(end - first, keys.align) * (keys.align // BLOCK))
        tokens = T.Bind(blocks * BLOCK)
        if keys.prepare is not None:
            keys.prepare(first, end)
        self.score(keys, groups, first, blocks, end)
        if self.softcap:
            self._cap(rows, tokens)
        self._mask(rows, allowed, first, tokens)
        with loop(rows) as r:
            self._softmax(r, tokens)
        read_from: Any = T.int64(0)
        if allowed.first is not None:
            read_from = T.Bind(T.max(allowed.first(T.int64(0)) - first, T.int64(0)))
        self.accumulate(keys, groups, first, read_from, end - first, allowed.end(rows - 1) - 1)

    def score(self, keys: Keys, groups: Any, first: Any, blocks: Any, end: Any) -> None:
        """Scores of ``blocks`` blocks of 16 keys from ``first`` on; values before ``end`` may be asked for."""
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
                size = tile.rows * tile.key_vectors
                sums = Registers(size * tile.split, vector("float32", lanes))
                for index in range(size * tile.split):
                    sums[index] = splat(0.0, lanes)

                def multiply(d: Any, part: int) -> None:
                    def key(v: int) -> Any:
                        return keys.key(tile_blocks[v // per_block], d, v % per_block * lanes, lanes)

                    def element(r: int) -> Any:
                        return self.query[group, d, r]

                    def add_product(r: int, v: int, product: Any) -> None:
                        index = part * size + r * tile.key_vectors + v
                        sums[index] = sums[index] + product

                    add_outer_product(tile.rows, [lanes] * tile.key_vectors, element, key, add_product)

                steps = self.head_dim // tile.split
                with loop(steps) as step_d:
                    if keys.ahead is not None:
                        lines = keys.ahead.value_lines
                        per_step = -(-tile.tokens * lines // steps)
                        for line in range(per_step):
                            index = step_d * per_step + line
                            token = first + step * tile.tokens + T.floordiv(index, T.int64(lines))
                            keys.ahead.value(T.min(token, end - 1), T.floormod(index, T.int64(lines)))
                    for part in range(tile.split):
                        multiply(step_d * tile.split + part, part)
                for d in range(steps * tile.split, self.head_dim):
                    multiply(T.int64(d), 0)
                for r in range(tile.rows):
                    for v in range(tile.key_vectors):
                        value = sums[r * tile.key_vectors + v]
                        for part in range(1, tile.split):
                            value = value + sums[part * size + r * tile.key_vectors + v]
                        at = [group * tile.rows + r, step * tile.tokens + v * lanes]
                        store(self.scores, value, at, lanes)

    def _cap(self, rows: Any, tokens: Any) -> None:
        lanes = self.tile.lanes
        with loop(rows) as r, loop(T.floordiv(tokens, T.int64(lanes))) as step:
            at = [r, step * lanes]
            capped = tanh(load(self.scores, at, lanes), lanes) * splat(self.softcap * self.unit, lanes)
            store(self.scores, capped, at, lanes)

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
        """Scores to probabilities (not yet divided by their sum)."""
        lanes = self.tile.lanes
        steps = T.Bind(T.floordiv(tokens, T.int64(lanes)))
        state = Registers(1, vector("float32", lanes))
        state[0] = load(self.scores, [r, T.int64(0)], lanes)
        with loop(steps - 1, start=T.int64(1)) as step:
            state[0] = T.max(state[0], load(self.scores, [r, step * lanes], lanes))
        highest = hold(reduce_lanes(state[0], lanes, maximum))
        top = hold(T.max(highest, self.top[r]))
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

        with T.If(keep < T.float32(1)), T.Then():
            for_spans(self.value_dim, lanes, fade)

    def accumulate(self, keys: Keys, groups: Any, first: Any, begin: Any, end: Any, last: Any) -> None:
        """Add the weighted values of tokens ``first + begin .. first + end - 1``; ``last``: the block's last key."""
        pieces = spans(self.value_dim, self.tile.lanes)
        step = self.tile.value_vectors
        for column in range(0, len(pieces), step):
            with loop(groups) as group:
                ahead = keys.ahead if column == 0 else None
                self._accumulate_columns(keys, ahead, pieces[column : column + step], group, (first, begin, end, last))

    def _accumulate_columns(
        self, keys: Keys, ahead: Ahead | None, columns: list[tuple[int, int]], group: Any, tokens: tuple[Any, ...]
    ) -> None:
        tile = self.tile
        first, begin, end, last = tokens
        sums = {piece: Registers(tile.rows, vector("float32", piece[1])) for piece in columns}
        for r in range(tile.rows):
            for piece in columns:
                sums[piece][r] = load(self.output, [group * tile.rows + r, piece[0]], piece[1])
        with loop(end - begin, start=begin) as t:
            if ahead is not None:
                # Clamped to what will be read: beyond it nothing is worth the bandwidth.
                token = T.min(first + tile.chunk + t, last)
                for line in range(ahead.key_lines):
                    ahead.key(token, line)

            def value(v: int) -> Any:
                return keys.value(first + t, *columns[v])

            def weight(r: int) -> Any:
                return self.scores[group * tile.rows + r, t]

            def add_product(r: int, v: int, product: Any) -> None:
                sums[columns[v]][r] = sums[columns[v]][r] + product

            add_outer_product(tile.rows, [piece[1] for piece in columns], weight, value, add_product)
        for r in range(tile.rows):
            for piece in columns:
                store(self.output, sums[piece][r], [group * tile.rows + r, piece[0]], piece[1])
