"""Scores of one token against packed keys, by byte dot products: codes are never dequantized::

    s[r, t] = sum_g scale[t, g] f[r, g] (sum_{d in g} code[t, d] q[r, d] - offset[t, g] sum_{d in g} q[r, d])

Queries q are single bytes, except for 8-bit keys: the error of narrower ones is several times that of such a query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Tile
from bitwright.codegen.attention.decode_block import DecodeBlock
from bitwright.codegen.attention.integer_side import (
    LARGEST_BYTE,
    LARGEST_PAIR,
    SMALLEST,
    byte_side,
    dot_rows,
    pair_side,
    total_of,
    vectors_per_chain,
)
from bitwright.codegen.builder import Registers, loop, splat, stack, store, vector, zero_registers
from bitwright.codegen.cache_layout import ROWS, TOKENS, PackedCache
from bitwright.codegen.cache_read import Blocks, PackedHead
from bitwright.codegen.isa import Isa
from bitwright.codegen.vectormath import add, hold, maximum, reduce_lanes

PAIRED_KEY_BITS = 8
"""Keys of fewer bits are multiplied by queries of single bytes."""
PIECE = 32
"""Elements of a head that one straight line of code multiplies."""
ROLLED_GROUPS = 2
"""Heads of more groups than this are looped over."""


class IntegerKeys:
    """Scores of one head's query rows against packed keys. Make it inside the loop that owns the block."""

    def __init__(self, layout: PackedCache, buffer: Any, tile: Tile, isa: Isa) -> None:
        self.layout, self.buffer, self.tile, self.isa = layout, buffer, tile, isa
        total = tile.groups * tile.rows
        paired = layout.bits >= PAIRED_KEY_BITS
        self.largest = LARGEST_PAIR if paired else LARGEST_BYTE
        self.side = (pair_side if paired else byte_side)(isa, layout.bits, total, layout.width)
        self.factors = stack((total, layout.groups), "float32")
        self.sums = stack((total, layout.groups), "float32")

    def start(self, rows: int, scale: float, query: Callable[[Any, Any, int], Any]) -> None:
        """Quantize ``rows`` rows, ``query(row, d, lanes)``; scores come out times ``scale``."""
        self._rows, self._scale, self._query = rows, scale, query
        layout, lanes = self.layout, self.isa.lanes
        single, word = vector("float32", lanes), vector("int32", lanes)
        with loop(rows) as r, loop(layout.groups) as group:
            state = Registers(2, single)
            state[0] = state[1] = splat(T.float32(0), lanes)
            first = T.Bind(group * layout.group)
            with loop(layout.group // lanes) as step:
                state[0] = T.max(state[0], T.fabs(query(r, first + step * lanes, lanes)))
            top = hold(reduce_lanes(state[0], lanes, maximum))
            live = top > T.float32(SMALLEST)
            inverse = hold(T.Select(live, T.float32(self.largest) / top, T.float32(0)))
            factor = hold(T.Select(live, top * T.float32(scale / self.largest), T.float32(0)))
            with loop(layout.group // lanes) as step:
                column = first + step * lanes
                rounded = hold(T.nearbyint(query(r, column, lanes) * splat(inverse, lanes)))
                state[1] = state[1] + rounded
                self.side.put(r, column, hold(T.cast(rounded, word)))
            T.buffer_store(self.factors, factor, [r, group])
            T.buffer_store(self.sums, reduce_lanes(state[1], lanes, add) * factor, [r, group])
        # Rows that only fill up the last tile compute with zeros, and nobody reads them.
        with loop(self.tile.groups * self.tile.rows - rows, start=rows) as r:
            with loop(layout.groups) as group:
                T.buffer_store(self.factors, T.float32(0), [r, group])
                T.buffer_store(self.sums, T.float32(0), [r, group])
            self.side.clear(r)

    def score(self, block: DecodeBlock, run: Blocks, first: Any, tokens: Any) -> None:
        """Scores of tokens ``first .. first + tokens - 1``, both multiples of 32, of ``run.head``."""
        lanes, rows = self.isa.lanes, self.tile.rows
        packed = PackedHead(self.layout, self.buffer, run.head, lanes)
        first_block = T.Bind(T.floordiv(first, T.int64(TOKENS)))
        count = vectors_per_chain(self.isa, self.side.chains * rows, TOKENS // lanes)
        with loop(T.floordiv(tokens, T.int64(TOKENS))) as index, loop(self.tile.groups) as tile:
            stored = T.Bind(first_block + index)
            ahead = run.after(stored, self.layout, self.isa.prefetch_level)
            for token in range(0, TOKENS, count * lanes):
                results = zero_registers(rows * count, vector("float32", lanes))
                tokens_of = [token + v * lanes for v in range(count)]
                if self.layout.groups <= ROLLED_GROUPS or self.layout.group % PIECE:
                    for group in range(self.layout.groups):
                        self._add_group(packed, (stored, ahead), tokens_of, tile, group, results)
                else:
                    with loop(self.layout.groups) as group:
                        self._add_group(packed, (stored, ahead), tokens_of, tile, group, results)
                for row in range(rows):
                    for v in range(count):
                        at = [tile * rows + row, index * TOKENS + tokens_of[v]]
                        store(block.scores, results[row * count + v], at, lanes)
        if self.layout.exact_tokens:
            with T.If(first == 0), T.Then():
                self._score_exact(block, packed)

    def _score_exact(self, block: DecodeBlock, packed: PackedHead) -> None:
        """The first token's score, from its exact elements and the unrounded query."""
        lanes = self.isa.lanes
        with loop(self._rows) as r:
            sums = zero_registers(1, vector("float32", lanes))
            with loop(self.layout.width // lanes) as step:
                sums[0] = sums[0] + self._query(r, step * lanes, lanes) * packed.exact(step * lanes, lanes)
            T.buffer_store(block.scores, reduce_lanes(sums[0], lanes, add) * T.float32(self._scale), [r, T.int64(0)])

    def _add_group(
        self,
        packed: PackedHead,
        blocks: tuple[Any, tuple[Any, Any]],
        tokens: list[int],
        tile: Any,
        group: Any,
        results: Registers,
    ) -> None:
        stored, ahead = blocks
        coded = packed.part(group) if len(self.layout.parts) > 1 else packed
        layout, lanes, rows, count = coded.layout, self.isa.lanes, self.tile.rows, len(tokens)
        totals = zero_registers(self.side.chains * rows * count, vector("int32", lanes))

        def piece(column: Any, unit: Any, steps: range) -> None:
            """Steps of one piece: ``unit`` is its first, and step 0 lies at element ``column``."""
            per_unit = layout.unit // 4

            def operand(v: int, step: int) -> Any:
                inner, within = divmod(steps[step], per_unit)
                return coded.codes(stored, tokens[v] // ROWS, unit + inner, within, tokens[v] % ROWS)

            def place(row: int, step: int) -> tuple[Any, Any]:
                return tile * rows + row, column + 4 * steps[step]

            runs = TOKENS // (count * lanes)
            pieces = self.layout.width // (4 * len(steps))
            number = (tile * runs + tokens[0] // (count * lanes)) * pieces + T.floordiv(
                column // 4 + steps[0], len(steps)
            )

            def each(step: int) -> None:
                of_all = self.tile.groups * runs * pieces
                packed.ask_for(ahead, number, of_all, step, len(steps), self.isa.prefetch_level)

            dot_rows(self.side, rows, count, len(steps), operand, place, totals, each)

        if layout.group % PIECE == 0:
            pieces = layout.group // PIECE
            before = 0 if coded is not packed else group * pieces
            if pieces == 1:
                piece(group * PIECE, before * (PIECE // layout.unit), range(PIECE // 4))
            else:
                with loop(pieces) as inner:
                    unit = (before + inner) * (PIECE // layout.unit)
                    piece((group * pieces + inner) * PIECE, unit, range(PIECE // 4))
        else:
            begin = group * layout.group // 4
            piece(0, 0, range(begin, begin + layout.group // 4))
        for v in range(count):
            scale = hold(packed.scales(stored, group, tokens[v], lanes))
            offset = hold(packed.offsets(stored, group, tokens[v], lanes))
            for row in range(rows):
                at = [tile * rows + row, group]
                factor, centre = splat(self.factors[at], lanes), splat(self.sums[at], lanes)
                value = total_of(self.side, totals, row, v, count) * factor - offset * centre
                results[row * count + v] = results[row * count + v] + value * scale
