"""One key/value head in decoding: its query rows, and the online softmax that takes them from chunk to chunk.

Rows are few and chunks short, so nothing waits for a reduction row by row: maxima, sums and weights of all rows of a
register tile are formed side by side, and what is one number per row is computed for all rows at once. Scores are kept
in units of log2(e), so that weights are powers of two::

    m' = max(m, max_t s);  fade = 2**(m - m');  w = 2**(s - b);  l = l fade + fresh sum_t w

Weights are relative to a base b: m' itself (fresh is 1) where values are floats, the chunk's own largest score (fresh
is 2**(b - m')) where they are packed, whose weights become integers.
"""

from __future__ import annotations

from typing import Any, Protocol

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Block, Range, Tile, ceildiv
from bitwright.codegen.builder import Registers, load, loop, splat, store, vector, zero_registers
from bitwright.codegen.cache import CacheSpec
from bitwright.codegen.vectormath import LOG2E, LOWEST, add, exp2, for_spans, hold, maximum, reduce_lanes


class DecodeKeys(Protocol):
    """Keys of one head."""

    def score(self, block: DecodeBlock, first: Any, tokens: Any) -> None:
        """Emit the scores of all rows with tokens ``first .. first + tokens - 1``, whole runs of the alignment."""


class DecodeValues(Protocol):
    """Values of one head."""

    def accumulate(self, block: DecodeBlock, first: Any, tokens: Any, known: Any) -> None:
        """Emit the fading of the outputs, and add the weighted values of a chunk's first ``known`` tokens."""


class DecodeBlock(Block):
    """State of the rows of one head. Make it inside the function that owns it.

    Args:
        align: tokens are scored in whole runs of so many, which chunks begin with.
        relative: weights are relative to the largest of their chunk, where ``advance`` is not told otherwise.

    Attributes:
        highest: every row's largest score of the chunk.
        fade: what weights of the chunks before are worth beside the largest score so far.
        fresh: what the chunk's own are worth beside it, if they are relative.
        sums: weights of every row, added up by lanes.
    """

    def __init__(self, tile: Tile, cache: CacheSpec, scale: float, softcap: float, align: int, relative: bool) -> None:
        super().__init__(tile, cache.head_dim, cache.value_dim, scale, softcap, unit=LOG2E)
        self.align, self.relative = align, relative
        rows = tile.groups * tile.rows
        self.highest, self.fade, self.fresh = (T.alloc_buffer((self.padded,), "float32") for _ in range(3))
        self.sums = T.alloc_buffer((rows, tile.lanes), "float32")

    def begin(self) -> None:
        """Forget everything: no token was seen."""
        tile = self.tile
        lowest = splat(T.float32(LOWEST), tile.lanes)
        with loop(self.padded // tile.lanes) as part:
            store(self.top, lowest, [part * tile.lanes], tile.lanes)
            store(self.highest, lowest, [part * tile.lanes], tile.lanes)
        with loop(tile.groups * tile.rows) as r:
            store(self.sums, splat(T.float32(0), tile.lanes), [r, 0], tile.lanes)
            for_spans(self.value_dim, tile.lanes, lambda o, n: store(self.output, splat(T.float32(0), n), [r, o], n))

    def advance(
        self, keys: DecodeKeys, values: DecodeValues, allowed: Range, first: Any, end: Any, relative: bool | None = None
    ) -> None:
        """Attend to tokens ``first .. end-1``, at most a chunk of them."""
        relative = self.relative if relative is None else relative
        tokens = T.Bind(ceildiv(end - first, self.align) * self.align)
        rows = T.int64(self.tile.groups * self.tile.rows)
        keys.score(self, first, tokens)
        if self.softcap:
            self._cap(rows, tokens)
        self._mask(rows, allowed, first, tokens)
        self._find_highest(tokens)
        self._follow()
        self._weigh(tokens, relative)
        values.accumulate(self, first, tokens, end - first)

    def sum_of(self, row: Any) -> Any:
        """The sum of a row's weights so far, relative to its largest score."""
        return reduce_lanes(load(self.sums, [row, 0], self.tile.lanes), self.tile.lanes, add)

    def fade_outputs(self) -> None:
        """Make outputs relative to the new largest scores, in the few chunks that have one."""
        with loop(self.tile.groups * self.tile.rows) as r, T.If(self.fade[r] < T.float32(1)), T.Then():
            factor = hold(self.fade[r])

            def scale(offset: Any, n: int) -> None:
                store(self.output, load(self.output, [r, offset], n) * splat(factor, n), [r, offset], n)

            for_spans(self.value_dim, self.tile.lanes, scale)

    def _columns(self, step: Any) -> list[Any]:
        lanes = self.tile.lanes
        return [step * self.align + v * lanes for v in range(self.align // lanes)]

    def _find_highest(self, tokens: Any) -> None:
        """Every row's largest score of the chunk."""
        tile, lanes = self.tile, self.tile.lanes
        with loop(tile.groups) as part:
            tops = Registers(tile.rows, vector("float32", lanes))
            for r in range(tile.rows):
                tops[r] = splat(T.float32(LOWEST), lanes)
            with loop(T.floordiv(tokens, T.int64(self.align))) as step:
                for column in self._columns(step):
                    for r in range(tile.rows):
                        tops[r] = T.max(tops[r], load(self.scores, [part * tile.rows + r, column], lanes))
            for r in range(tile.rows):
                T.buffer_store(self.highest, reduce_lanes(tops[r], lanes, maximum), [part * tile.rows + r])

    def _follow(self) -> None:
        """Every row's largest score so far, and what earlier and new weights are worth beside it."""
        lanes = self.tile.lanes
        with loop(self.padded // lanes) as part:
            at = [part * lanes]
            before, highest = hold(load(self.top, at, lanes)), hold(load(self.highest, at, lanes))
            best = hold(T.max(before, highest))
            store(self.top, best, at, lanes)
            store(self.fade, exp2(before - best, lanes, fine=True), at, lanes)
            if self.relative:
                store(self.fresh, exp2(highest - best, lanes, fine=True), at, lanes)

    def _weigh(self, tokens: Any, relative: bool) -> None:
        """Scores to weights, and their sums."""
        tile, lanes = self.tile, self.tile.lanes
        base = self.highest if relative else self.top
        with loop(tile.groups) as part:
            own = [hold(splat(base[part * tile.rows + r], lanes)) for r in range(tile.rows)]
            sums = zero_registers(tile.rows, vector("float32", lanes))
            with loop(T.floordiv(tokens, T.int64(self.align))) as step:
                for column in self._columns(step):
                    for r in range(tile.rows):
                        at = [part * tile.rows + r, column]
                        weight = exp2(load(self.scores, at, lanes) - own[r], lanes, fine=not relative)
                        store(self.scores, weight, at, lanes)
                        sums[r] = sums[r] + weight
            for r in range(tile.rows):
                row = part * tile.rows + r
                new = sums[r] * splat(self.fresh[row], lanes) if relative else sums[r]
                store(self.sums, load(self.sums, [row, 0], lanes) * splat(self.fade[row], lanes) + new, [row, 0], lanes)
