"""A block of query rows against one key/value head, in 16-bit integers: what prefill computes with.

As :mod:`~bitwright.codegen.attention.block`, chunk by chunk with online softmax, but queries, keys, probabilities and
values are words (:mod:`~bitwright.codegen.attention.word_operands`). With D elements of a head, a query or a key is off
by at most 1 / (2 sqrt(2**31 / D)) of its largest element (2**-13.5 for D = 64), a probability by 2**-14 of the chunk's
largest, a value by 2**-13 of the element's largest in the chunk: about what storing them in 16 bits costs.

A few rows, a *band*, go through a chunk from scores to outputs before the next ones start; products are computed for a
part of them, a *tile*, at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Keys, Range, ceildiv
from bitwright.codegen.attention.word_dot import WordDot, pair_of, put_words, rounded
from bitwright.codegen.attention.word_operands import LARGEST_WEIGHT, KeyWords, Queries, ValueWords
from bitwright.codegen.builder import Registers, load, loop, splat, store, vector, zero_registers
from bitwright.codegen.isa import Isa
from bitwright.codegen.vectormath import LOG2E, LOWEST, add, exp2, for_spans, hold, maximum, reduce_lanes, tanh


@dataclass(frozen=True)
class WordTile:
    """Sizes of a block, fixed when the kernel is built.

    Attributes:
        rows: rows of a tile, whose sums stay in registers.
        tiles: tiles of a band: together at most as many rows as a vector has lanes.
        bands: bands of a block.
        vectors: vectors of tokens or value elements that are computed at a time for the rows of a tile.
        chunk: keys of a chunk; a multiple of the tokens of ``vectors`` vectors.
    """

    rows: int
    tiles: int
    bands: int
    vectors: int
    chunk: int

    @property
    def band(self) -> int:
        """Rows of a band."""
        return self.rows * self.tiles

    @classmethod
    def fit(cls, rows: int, isa: Isa, chunk: int) -> WordTile:
        """Tiles of at most six rows for blocks of ``rows`` rows: sums, operands and one pair fit the registers."""
        tile_rows = min(rows, 6)
        tiles = min(isa.lanes // tile_rows, -(-rows // tile_rows))
        return cls(tile_rows, tiles, -(-rows // (tile_rows * tiles)), 4 if isa.registers > 16 else 2, chunk)


class WordBlock:
    """State of one block in local memory and the code that advances it. Make it inside the loop that owns it."""

    def __init__(self, tile: WordTile, dims: tuple[int, int], scale: float, softcap: float, isa: Isa) -> None:
        """``dims``: elements of a query or key, and of a value."""
        self.tile, self.lanes, self.softcap, self.dot = tile, isa.lanes, softcap, WordDot(isa)
        head_dim, self.value_dim = dims
        total = tile.band * tile.bands
        # Scores are exponents of two; with softcap, arguments of its tanh until then.
        self.queries = Queries(total, head_dim, scale / softcap if softcap else scale * LOG2E, self.lanes)
        self.keys = KeyWords(tile.chunk, head_dim, self.lanes)
        self.values = ValueWords(tile.chunk, self.value_dim, self.lanes)
        self.scores = T.alloc_buffer((tile.band, tile.chunk), "float32")
        self.weights = T.alloc_buffer((tile.band, tile.chunk), "int16")
        self.highest = T.alloc_buffer((self.lanes,), "float32")
        self.fade = T.alloc_buffer((self.lanes,), "float32")
        self.fresh = T.alloc_buffer((self.lanes,), "float32")
        self.top = T.alloc_buffer((tile.bands, self.lanes), "float32")
        self.sums = T.alloc_buffer((total, self.lanes), "float32")
        self.output = T.alloc_buffer((total, self.values.vectors * self.lanes), "float32")

    def start(self, rows: Any, query: Callable[[Any, Any, int], Any]) -> None:
        """Fill the state for ``rows`` rows whose elements are ``query(row, d, lanes)``."""
        lanes, size = self.lanes, self.tile.rows
        padded = T.Bind(ceildiv(rows, size) * size)
        self.queries.fill(rows, padded, query)
        with loop(self.tile.bands) as band:
            store(self.top, splat(T.float32(LOWEST), lanes), [band, 0], lanes)
        with loop(padded) as r:
            store(self.sums, splat(T.float32(0), lanes), [r, 0], lanes)
            with loop(self.values.vectors) as v:
                store(self.output, splat(T.float32(0), lanes), [r, v * lanes], lanes)

    def visit(self, keys: Keys, rows: Any, allowed: Range, first: Any, end: Any) -> None:
        """Advance ``rows`` rows over keys ``first .. end-1``, at most a chunk; bands that see none of them wait."""
        tile = self.tile
        begin = first
        if allowed.first is not None:
            begin = hold(T.max(first, allowed.first(T.int64(0))))
        if keys.prepare is not None:
            keys.prepare(first, end)
        self.keys.fill(keys, first, end)
        self.values.fill(keys, first, begin, end)
        with loop(ceildiv(rows, tile.band)) as number:
            first_row = T.Bind(number * tile.band)
            count = T.Bind(T.min(rows - first_row, T.int64(tile.band)))
            band = _Band(number, first_row, count, T.Bind(ceildiv(count, tile.rows)))
            seen = hold(T.min(allowed.end(band.last_row), end) - first)
            some = seen > T.int64(0)
            if allowed.first is not None:
                some = T.And(some, allowed.first(first_row) < end)
            with T.If(some), T.Then():
                steps = T.Bind(ceildiv(seen, tile.vectors * self.lanes))
                self._score(band, steps)
                self._cap(band, steps)
                self._mask(band, allowed, first, steps)
                self._softmax(band, steps)
                self._accumulate(band, ceildiv(seen, 2))

    def write(self, y: Any, rows: Any, place: Callable[[Any], tuple[Any, Any]]) -> None:
        """Divide the rows' outputs by their sums and store them; ``place(row)`` gives (token, first column)."""
        with loop(rows) as r:
            inverse = hold(T.float32(1) / reduce_lanes(load(self.sums, [r, 0], self.lanes), self.lanes, add))
            token, column = place(r)

            def write(offset: Any, n: int) -> None:
                store(y, load(self.output, [r, offset], n) * splat(inverse, n), [token, column + offset], n)

            for_spans(self.value_dim, self.lanes, write)

    def _score(self, band: _Band, steps: Any) -> None:
        tile, lanes, queries, keys = self.tile, self.lanes, self.queries, self.keys
        with loop(steps) as step, loop(band.tiles) as part:
            totals = zero_registers(tile.rows * tile.vectors, vector("int32", lanes))
            row = T.Bind(part * tile.rows)
            with loop(keys.pairs) as pair:
                self._multiply(
                    totals,
                    tile.vectors,
                    lambda v: load(keys.words, [step * tile.vectors + v, pair, 0], lanes),
                    lambda r: pair_of(queries.words, band.first_row + row + r, pair * 2),
                )
            for v in range(tile.vectors):
                token = (step * tile.vectors + v) * lanes
                factor = hold(load(keys.factor, [token], lanes))
                for r in range(tile.rows):
                    score = T.cast(totals[r * tile.vectors + v], vector("float32", lanes)) * factor
                    own = splat(queries.factor[band.first_row + row + r], lanes)
                    store(self.scores, score * own, [row + r, token], lanes)

    def _multiply(
        self, totals: Registers, vectors: int, operand: Callable[[int], Any], pair: Callable[[int], Any]
    ) -> None:
        """totals[r * vectors + v] += products of operand(v) and pair(r)."""
        operands = [hold(operand(v)) for v in range(vectors)]
        for r in range(self.tile.rows):
            right = hold(pair(r))
            for v in range(vectors):
                totals[r * vectors + v] = self.dot.step(totals[r * vectors + v], operands[v], right)

    def _cap(self, band: _Band, steps: Any) -> None:
        if not self.softcap:
            return
        lanes = self.lanes
        factor = splat(T.float32(self.softcap * LOG2E), lanes)
        with loop(band.rows) as r, loop(steps * self.tile.vectors) as v:
            at = [r, v * lanes]
            store(self.scores, tanh(load(self.scores, at, lanes), lanes) * factor, at, lanes)

    def _mask(self, band: _Band, allowed: Range, first: Any, steps: Any) -> None:
        """Overwrite scores outside the rows' ranges; most bands and chunks lie inside all of them and skip this."""
        lanes, step = self.lanes, self.tile.vectors * self.lanes
        needed = first + steps * step > allowed.end(band.first_row)
        if allowed.first is not None:
            needed = T.Or(needed, first < allowed.first(band.last_row))
        lowest = splat(T.float32(LOWEST), lanes)
        with T.If(needed), T.Then(), loop(band.rows) as r:
            row = T.Bind(band.first_row + r)
            end = hold(T.cast(allowed.end(row) - first, "int32"))
            begin = None if allowed.first is None else hold(T.cast(allowed.first(row) - first, "int32"))
            with loop(steps * self.tile.vectors) as v:
                at = [r, v * lanes]
                index = T.Bind(T.ramp(T.cast(v * lanes, "int32"), T.int32(1), lanes))
                value = T.Select(index < T.broadcast(end, lanes), load(self.scores, at, lanes), lowest)
                if begin is not None:
                    value = T.Select(index >= T.broadcast(begin, lanes), value, lowest)
                store(self.scores, value, at, lanes)

    def _softmax(self, band: _Band, steps: Any) -> None:
        """Scores to weights relative to the chunk's largest, and what that is worth beside the chunks before it."""
        lanes, vectors = self.lanes, self.tile.vectors
        state = Registers(1, vector("float32", lanes))

        def columns(step: Any) -> list[Any]:
            return [(step * vectors + v) * lanes for v in range(vectors)]

        with loop(band.rows) as r:
            state[0] = splat(T.float32(LOWEST), lanes)
            with loop(steps) as step:
                state[0] = T.max(state[0], _tree([load(self.scores, [r, c], lanes) for c in columns(step)], maximum))
            T.buffer_store(self.highest, reduce_lanes(state[0], lanes, maximum), [r])
        highest, before = hold(load(self.highest, [0], lanes)), hold(load(self.top, [band.number, 0], lanes))
        top = hold(T.max(highest, before))
        store(self.fade, exp2(before - top, lanes), [0], lanes)
        store(self.fresh, exp2(highest - top, lanes), [0], lanes)
        store(self.top, top, [band.number, 0], lanes)
        scale = splat(T.float32(LARGEST_WEIGHT), lanes)
        with loop(band.rows) as r:
            own = hold(splat(self.highest[r], lanes))
            state[0] = splat(T.float32(0), lanes)
            with loop(steps) as step:
                weights = [exp2(load(self.scores, [r, c], lanes) - own, lanes) for c in columns(step)]
                for column, weight in zip(columns(step), weights, strict=True):
                    put_words(self.weights, rounded(weight, scale, lanes), [r, column], lanes)
                state[0] = state[0] + _tree(weights, add)
            row = T.Bind(band.first_row + r)
            kept = load(self.sums, [row, 0], lanes) * splat(self.fade[r], lanes)
            store(self.sums, kept + state[0] * splat(self.fresh[r], lanes), [row, 0], lanes)

    def _accumulate(self, band: _Band, pairs: Any) -> None:
        full, rest = divmod(self.values.vectors, self.tile.vectors)
        with loop(full) as part:
            self._accumulate_columns(band, pairs, part * self.tile.vectors, self.tile.vectors)
        if rest:
            self._accumulate_columns(band, pairs, T.int64(full * self.tile.vectors), rest)

    def _accumulate_columns(self, band: _Band, pairs: Any, first: Any, vectors: int) -> None:
        rows, lanes, values = self.tile.rows, self.lanes, self.values
        with loop(band.tiles) as part:
            row = T.Bind(part * rows)
            totals = zero_registers(rows * vectors, vector("int32", lanes))
            with loop(pairs) as pair:
                self._multiply(
                    totals,
                    vectors,
                    lambda v: load(values.words, [pair, (first + v) * lanes], lanes),
                    lambda r: pair_of(self.weights, row + r, pair * 2),
                )
            for v in range(vectors):
                column = (first + v) * lanes
                factor = hold(load(values.factor, [column], lanes))
                for r in range(rows):
                    at = [band.first_row + row + r, column]
                    total = T.cast(totals[r * vectors + v], vector("float32", lanes))
                    kept = load(self.output, at, lanes) * splat(self.fade[row + r], lanes)
                    store(self.output, kept + total * (factor * splat(self.fresh[row + r], lanes)), at, lanes)


@dataclass(frozen=True)
class _Band:
    """Rows ``first_row .. first_row + rows - 1`` of a block: band ``number``, in ``tiles`` tiles."""

    number: Any
    first_row: Any
    rows: Any
    tiles: Any

    @property
    def last_row(self) -> Any:
        return self.first_row + self.rows - 1


def _tree(values: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
    """The values combined pairwise."""
    while len(values) > 1:
        values = [combine(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]
