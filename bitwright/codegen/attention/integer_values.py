"""Weighted sums of packed values for one token, by byte dot products: codes are never dequantized::

    w[r, g, t] = p[r, t] scale[t, g], rounded to multiples of (largest p of the chunk * largest scale) / (128**2 - 1)
    o[r, e] += sum_t w[r, g(e), t] code[t, e] - sum_t w[r, g(e), t] offset[t, g(e)]

Weights are pairs of bytes: many small ones may together outweigh a large one, which a byte would not keep.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Block, Tile
from bitwright.codegen.attention.byte_dot import SMALLEST, ByteRows, dot_rows, joined, vectors_per_chain
from bitwright.codegen.builder import Registers, load, loop, splat, stack, store, vector, zero_registers
from bitwright.codegen.cache_layout import ROWS, TOKENS, PackedCache
from bitwright.codegen.cache_read import PackedHead
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.dot import dot_of
from bitwright.codegen.vectormath import add, hold, maximum, reduce_lanes

LARGEST_WEIGHT = 128**2 - 1
PIECE = 32
"""Elements that accumulators are held for at a time, where they share a group."""


class IntegerValues:
    """Weighted sums of packed values. Make it inside the loop that owns the block."""

    def __init__(self, layout: PackedCache, buffer: Any, tile: Tile, isa: Isa) -> None:
        self.layout, self.buffer, self.tile, self.isa = layout, buffer, tile, isa
        self.dot = dot_of(isa, layout.bits)
        total = tile.groups * tile.rows
        self.bytes = ByteRows(T.alloc_buffer((layout.groups * total, 2, tile.chunk), "int8"), 2)
        self.scales = T.alloc_buffer((layout.groups, tile.chunk), "float32")
        self.offsets = T.alloc_buffer((layout.groups, tile.chunk), "float32")
        self.largest = stack((layout.groups,), "float32")
        self.steps = stack((layout.groups, total), "float32")
        self.centres = stack((layout.groups, total), "float32")

    def accumulate(self, block: Block, head: Any, first: Any, tokens: Any, known: Any, more: Any) -> None:
        """Add tokens ``first .. first + tokens - 1``, both multiples of 32, whose probabilities are in the scores.

        ``known`` of the tokens were appended; ``more``: the next chunk will follow.
        """
        packed = PackedHead(self.layout, self.buffer, head, self.isa.lanes)
        first_block = T.Bind(T.floordiv(first, T.int64(TOKENS)))
        blocks = T.Bind(T.floordiv(tokens, T.int64(TOKENS)))
        self._read_affine(packed, first_block, blocks, known)
        with loop(self.layout.groups) as group, loop(self.tile.groups * self.tile.rows) as row:
            self._quantize(block, group, row, tokens)
        self._multiply(block, packed, first_block, blocks, more)

    def _read_affine(self, packed: PackedHead, first_block: Any, blocks: Any, known: Any) -> None:
        """Scales and offsets of the chunk, and the largest scale; tokens that were not appended yet have scale 0."""
        lanes = self.isa.lanes
        single = vector("float32", lanes)
        limit = T.Bind(T.cast(known, "int32"))
        with loop(self.layout.groups) as group:
            state = Registers(1, single)
            state[0] = splat(T.float32(0), lanes)
            with loop(blocks) as index:
                for token in range(0, TOKENS, lanes):
                    column = index * TOKENS + token
                    scale = packed.scales(first_block + index, group, token, lanes)
                    number = T.ramp(T.cast(column, "int32"), T.int32(1), lanes)
                    scale = hold(T.Select(number < splat(limit, lanes), scale, splat(T.float32(0), lanes)))
                    state[0] = T.max(state[0], scale)
                    store(self.scales, scale, [group, column], lanes)
                    offset = packed.offsets(first_block + index, group, token, lanes)
                    offset = offset - splat(T.float32(float(self.dot.bias)), lanes) if self.dot.bias else offset
                    store(self.offsets, offset, [group, column], lanes)
            T.buffer_store(self.largest, reduce_lanes(state[0], lanes, maximum), [group])

    def _quantize(self, block: Block, group: Any, row: Any, tokens: Any) -> None:
        """Probabilities times scales as bytes, their step, and what the zero points take away."""
        lanes = self.isa.lanes
        state = Registers(1, vector("float32", lanes))
        state[0] = splat(T.float32(0), lanes)
        top = hold(block.peak[row] * self.largest[group])
        live = top > T.float32(SMALLEST)
        inverse = hold(T.Select(live, T.float32(LARGEST_WEIGHT) / top, T.float32(0)))
        at_row = group * (self.tile.groups * self.tile.rows) + row
        with loop(T.floordiv(tokens, T.int64(lanes))) as step:
            at = step * lanes
            weight = load(block.scores, [row, at], lanes) * load(self.scales, [group, at], lanes)
            rounded = self.bytes.put_rounded(at_row, at, weight * splat(inverse, lanes), lanes)
            state[0] = state[0] + rounded * load(self.offsets, [group, at], lanes)
        unit = hold(T.Select(live, top * T.float32(1 / LARGEST_WEIGHT), T.float32(0)))
        T.buffer_store(self.steps, unit, [group, row])
        # Of the rounded weights, so that rounding errors are multiplied by values and not by codes.
        T.buffer_store(self.centres, reduce_lanes(state[0], lanes, add) * unit, [group, row])

    def _multiply(self, block: Block, packed: PackedHead, first_block: Any, blocks: Any, more: Any) -> None:
        layout, lanes, rows = self.layout, self.isa.lanes, self.tile.rows
        total = self.tile.groups * rows
        count = vectors_per_chain(self.isa, 2 * rows, (PIECE if layout.group % PIECE == 0 else ROWS) // lanes)
        parts = layout.width // (count * lanes)
        with loop(parts) as part, loop(self.tile.groups) as tile:
            element = T.Bind(part * (count * lanes))
            group = T.Bind(T.floordiv(element, T.int64(layout.group)))
            totals = zero_registers(2 * rows * count, vector("int32", lanes))
            with loop(blocks) as index:
                stored = T.Bind(first_block + index)
                ahead = T.Bind(T.if_then_else(more, stored + self.tile.chunk // TOKENS, stored))

                def each(step: int) -> None:
                    pieces = parts * self.tile.groups
                    packed.ask_for(ahead, part * self.tile.groups + tile, pieces, step, TOKENS // 4)

                def operand(v: int, step: int) -> Any:
                    unit, within = divmod(step, layout.unit // 4)
                    # Whole vectors of a run of 16, or (count * lanes < 16) a part that the element's place decides.
                    at = element + v * lanes
                    run = T.floordiv(at, T.int64(ROWS))
                    lane = v * lanes % ROWS if count * lanes >= ROWS else T.floormod(at, T.int64(ROWS))
                    return packed.codes(stored, run, unit, within, lane)

                def four(row: int, plane: int, step: int) -> Any:
                    return self.bytes.four(group * total + tile * rows + row, plane, index * TOKENS + 4 * step)

                dot_rows(self.dot, rows, 2, count, TOKENS // 4, operand, four, totals, each)
            for row in range(rows):
                at_row = tile * rows + row
                step, centre = splat(self.steps[group, at_row], lanes), splat(self.centres[group, at_row], lanes)
                for v in range(count):
                    at = [at_row, element + v * lanes]
                    value = joined(totals, row, 2, v, count, lanes) * step - centre
                    store(block.output, load(block.output, at, lanes) + value, at, lanes)
