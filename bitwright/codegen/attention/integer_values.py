"""Weighted sums of packed values for one token, by byte dot products: codes are never dequantized::

    w[r, g, t] = p[r, t] scale[t, g], rounded to multiples of (largest p of the chunk * largest scale) / (128**2 - 1)
    o[r, e] += sum_t w[r, g(e), t] code[t, e] - sum_t w[r, g(e), t] offset[t, g(e)]

Weights are pairs of bytes where one is large: many small ones may together outweigh it, which a byte would not keep.
Where none is large beside all before it, single bytes will do. They are dithered, so that neighbours below half a step
are not all lost.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Tile
from bitwright.codegen.attention.decode_block import DecodeBlock
from bitwright.codegen.attention.integer_side import (
    SMALLEST,
    IntegerSide,
    byte_side,
    dot_rows,
    pair_side,
    total_of,
    vectors_per_chain,
)
from bitwright.codegen.builder import Registers, load, loop, splat, stack, store, vector, zero_registers
from bitwright.codegen.cache_layout import ROWS, TOKENS, PackedCache
from bitwright.codegen.cache_read import Blocks, PackedHead
from bitwright.codegen.isa import Isa
from bitwright.codegen.vectormath import LOWEST, add, hold, maximum, reduce_lanes

BYTE_LEVELS, PAIR_LEVELS = 127, 128**2 - 1
"""What a weight of 1 becomes as an integer of one and of two bytes."""

PIECES = (64, 32, ROWS)
"""Elements that accumulators are held for at a time: the first that divides a group."""


def dither(token: int, lanes: int) -> Any:
    """Offsets between -1/2 and 1/2 that are spread evenly over any run of neighbouring tokens (bit reversal)."""
    offsets = [(int(f"{token + lane:05b}"[::-1], 2) + 0.5) / TOKENS - 0.5 for lane in range(lanes)]
    return tirx.Shuffle([T.float32(o) for o in offsets], list(range(lanes)))


class IntegerValues:
    """Weighted sums of packed values. Make it inside the function that owns the block."""

    def __init__(self, layout: PackedCache, buffer: Any, tile: Tile, isa: Isa) -> None:
        self.layout, self.buffer, self.tile, self.isa = layout, buffer, tile, isa
        total = tile.groups * tile.rows
        weights = layout.groups * total, tile.chunk
        self.pairs = pair_side(isa, layout.bits, *weights)
        # Without VNNI codes of 8 bits are as fast to multiply with words.
        words_alone = isa.dot == "maddubs" and layout.bits == 8
        self.single = None if words_alone else byte_side(isa, layout.bits, *weights)
        self.scales = T.alloc_buffer((layout.groups, tile.chunk), "float32")
        self.offsets = T.alloc_buffer((layout.groups, tile.chunk), "float32")
        self.largest = stack((layout.groups,), "float32")
        self.steps = stack((layout.groups, total), "float32")
        self.centres = stack((layout.groups, total), "float32")

    def accumulate(self, block: DecodeBlock, run: Blocks, first: Any, tokens: Any, known: Any) -> None:
        """Fade the outputs and add tokens ``first .. first + tokens - 1``, both multiples of 32, of ``run.head``.

        ``known`` of the tokens were appended.
        """
        packed = PackedHead(self.layout, self.buffer, run.head, self.isa.lanes)
        first_block = T.Bind(T.floordiv(first, T.int64(TOKENS)))
        blocks = T.Bind(T.floordiv(tokens, T.int64(TOKENS)))
        self._read_affine(packed, first_block, blocks, known)
        if self.single is None:
            self._add(block, packed, run, (first_block, blocks), self.pairs)
            return
        with T.If(self._is_flat(block)):
            with T.Then():
                self._add(block, packed, run, (first_block, blocks), self.single)
            with T.Else():
                self._add(block, packed, run, (first_block, blocks), self.pairs)

    def _is_flat(self, block: DecodeBlock) -> Any:
        """No row's largest weight of this chunk is more than 2**-(bits + 1) of all its weights so far.

        Single bytes then add less to the error of the outputs than the values' own rounding does.
        """
        excess = Registers(1, "float32")
        excess[0] = T.float32(LOWEST)
        share = T.float32(2.0 ** -(self.layout.bits + 1))
        with loop(self.tile.groups) as part:
            for r in range(self.tile.rows):
                row = part * self.tile.rows + r
                excess[0] = T.max(excess[0], block.fresh[row] - block.sum_of(row) * share)
        return excess[0] < T.float32(0)

    def _add(
        self, block: DecodeBlock, packed: PackedHead, run: Blocks, extent: tuple[Any, Any], side: IntegerSide
    ) -> None:
        with loop(self.layout.groups) as group, loop(self.tile.groups) as part:
            self._quantize(block, group, part, extent[1], side)
        self._multiply(block, packed, run, extent, side)

    def _read_affine(self, packed: PackedHead, first_block: Any, blocks: Any, known: Any) -> None:
        """Scales and offsets of the chunk, and the largest scale; tokens that were not appended yet have scale 0."""
        lanes = self.isa.lanes
        with loop(self.layout.groups) as group:
            with loop(blocks) as index:
                for token in range(0, TOKENS, lanes):
                    column = index * TOKENS + token
                    store(self.scales, packed.scales(first_block + index, group, token, lanes), [group, column], lanes)
                    offset = packed.offsets(first_block + index, group, token, lanes)
                    store(self.offsets, offset, [group, column], lanes)
            with loop(blocks * TOKENS - known, start=known) as token:
                T.buffer_store(self.scales, T.float32(0), [group, token])
            state = Registers(1, vector("float32", lanes))
            state[0] = splat(T.float32(0), lanes)
            with loop(blocks) as index:
                for token in range(0, TOKENS, lanes):
                    state[0] = T.max(state[0], load(self.scales, [group, index * TOKENS + token], lanes))
            T.buffer_store(self.largest, reduce_lanes(state[0], lanes, maximum), [group])

    def _quantize(self, block: DecodeBlock, group: Any, part: Any, blocks: Any, side: IntegerSide) -> None:
        """Weights times scales as integers, their steps, and what the zero points take away."""
        lanes, rows = self.isa.lanes, self.tile.rows
        levels = BYTE_LEVELS if side is self.single else PAIR_LEVELS
        top = hold(self.largest[group])
        live = top > T.float32(SMALLEST)
        inverse = hold(T.Select(live, T.float32(levels) / top, T.float32(0)))
        unit = hold(T.Select(live, top * T.float32(1 / levels), T.float32(0)))
        total = self.tile.groups * rows
        centres = zero_registers(rows, vector("float32", lanes))
        with loop(blocks) as index:
            for token in range(0, TOKENS, lanes):
                at = index * TOKENS + token
                scale = hold(load(self.scales, [group, at], lanes) * splat(inverse, lanes))
                offset = hold(load(self.offsets, [group, at], lanes))
                for r in range(rows):
                    weight = load(block.scores, [part * rows + r, at], lanes) * scale
                    whole = hold(T.nearbyint(weight + dither(token, lanes) if side is self.single else weight))
                    centres[r] = centres[r] + whole * offset
                    integers = hold(T.cast(whole, vector("int32", lanes)))
                    side.put_weights(group * total + part * rows + r, at, integers)
        for r in range(rows):
            row = part * rows + r
            step = hold(unit * block.fresh[row])
            T.buffer_store(self.steps, step, [group, row])
            # Of the rounded weights, so that rounding errors are multiplied by values and not by codes.
            T.buffer_store(self.centres, reduce_lanes(centres[r], lanes, add) * step, [group, row])

    def _multiply(
        self, block: DecodeBlock, packed: PackedHead, run: Blocks, extent: tuple[Any, Any], side: IntegerSide
    ) -> None:
        layout, lanes, rows = self.layout, self.isa.lanes, self.tile.rows
        total = self.tile.groups * rows
        widest = next(n for n in PIECES if layout.group % n == 0)
        count = vectors_per_chain(self.isa, side.chains * rows, widest // lanes)
        parts = layout.width // (count * lanes)
        with loop(parts) as part, loop(self.tile.groups) as tile:
            element = T.Bind(part * (count * lanes))
            group = T.Bind(T.floordiv(element, T.int64(layout.group)))
            totals = zero_registers(side.chains * rows * count, vector("int32", lanes))
            with loop(extent[1]) as index:
                stored = T.Bind(extent[0] + index)
                ahead = run.after(stored, layout, self.isa.prefetch_level)

                def each(step: int) -> None:
                    number, pieces = part * self.tile.groups + tile, parts * self.tile.groups
                    packed.ask_for(ahead, number, pieces, step, TOKENS // 4, self.isa.prefetch_level)

                def operand(v: int, step: int) -> Any:
                    unit, within = divmod(step, layout.unit // 4)
                    # Whole vectors of a run of 16, or (count * lanes < 16) a part that the element's place decides.
                    at = element + v * lanes
                    lane = v * lanes % ROWS if count * lanes >= ROWS else T.floormod(at, T.int64(ROWS))
                    return packed.codes(stored, T.floordiv(at, T.int64(ROWS)), unit, within, lane)

                def place(row: int, step: int) -> tuple[Any, Any]:
                    return group * total + tile * rows + row, index * TOKENS + 4 * step

                dot_rows(side, rows, count, TOKENS // 4, operand, place, totals, each)
            for row in range(rows):
                at_row = tile * rows + row
                step, centre = splat(self.steps[group, at_row], lanes), splat(self.centres[group, at_row], lanes)
                fade = splat(block.fade[at_row], lanes)
                for v in range(count):
                    at = [at_row, element + v * lanes]
                    value = total_of(side, totals, row, v, count) * step - centre
                    store(block.output, load(block.output, at, lanes) * fade + value, at, lanes)
