"""Expressions that read a packed cache (:mod:`bitwright.codegen.cache_layout`): codes, scales and zero points.

Importing this module imports TVM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import load, prefetch, splat, vector
from bitwright.codegen.cache_layout import LINE_BYTES, SCALE_MASK, ZERO_STEPS, PackedCache
from bitwright.scheme import AFFINE_BYTES

AHEAD_BYTES = {1: 9 * 1024, 2: 32 * 1024}
"""How far before it is read a stream is asked for, by the level of the cache: measured on a Zen 5 for the first (half
as much costs a tenth from DRAM, twice as much is no better), on a Zen 4 for the second (a quarter costs up to 40 %)."""


@dataclass(frozen=True)
class Blocks:
    """Blocks that a thread reads in order: those of a head before ``stop``, then those of the next from ``origin`` on.

    ``next_head`` is the head itself where the thread ends with it.
    """

    head: Any
    next_head: Any
    origin: Any
    stop: Any

    def after(self, block: Any, layout: PackedCache, level: int) -> tuple[Any, Any]:
        """Head and number of the block to ask for while ``block`` is read, into the cache of this level."""
        at = T.Bind(block + max(AHEAD_BYTES[level] // layout.block_bytes, 1))
        inside = at < self.stop
        head = T.Bind(T.if_then_else(inside, self.head, self.next_head))
        return head, T.Bind(T.if_then_else(inside, at, self.origin + at - self.stop))


@dataclass(frozen=True)
class PackedHead:
    """One head of a packed cache.

    Attributes:
        layout: where things lie.
        buffer: the cache tensor.
        head: which head.
        lanes: rows that one vector holds: 16, or a part of 16.
    """

    layout: PackedCache
    buffer: Any
    head: Any
    lanes: int

    def codes(self, block: Any, run: Any, unit: Any, step: int, lane: int) -> Any:
        """Codes of four inputs (step ``step`` of a unit) of rows ``lane`` ... of a run: u8 x (4 * lanes)."""
        layout, result = self.layout, None
        for plane in layout.planes:
            line = (run * layout.units + unit) * layout.lines + plane.first + step // plane.fields
            at = [self.head, layout.codes_at(block) + line * LINE_BYTES + 4 * lane]
            codes = load(self.buffer, at, 4 * self.lanes)
            bits = _bit_field(codes, plane.width, step % plane.fields, plane.position, self.lanes)
            result = bits if result is None else result | bits
        return result

    def part(self, number: int) -> PackedHead:
        """The head with codes of part ``number`` of the layout."""
        return replace(self, layout=self.layout.parts[number])

    def ask_for(self, place: tuple[Any, Any], piece: Any, pieces: int, step: int, steps: int, level: int = 1) -> None:
        """Prefetch what falls to step ``step`` of ``steps`` of one of the ``pieces`` pieces of a block.

        ``place``: its head, which may be another one, and its number. ``level``: of the cache.
        """
        head, block = place
        lines = -(-self.layout.block_bytes // (pieces * LINE_BYTES))
        for line in range(step * lines // steps, (step + 1) * lines // steps):
            prefetch(self.buffer[head, self.layout.codes_at(block) + (piece * lines + line) * LINE_BYTES], level)

    def scales(self, block: Any, group: Any, token: Any, lanes: int) -> Any:
        """f32 x lanes: scales of tokens ``token`` ... of a block; of two widths, ``group`` is the part's number."""
        bits = (self._words(block, group, token, lanes) >> splat(T.uint16(1), lanes)) & splat(
            T.uint16(SCALE_MASK), lanes
        )
        scales = T.cast(T.reinterpret(bits, dtype=vector("float16", lanes)), vector("float32", lanes))
        return self._times(scales, self.layout.top / self._top(group), lanes)

    def offsets(self, block: Any, group: Any, token: Any, lanes: int) -> Any:
        """f32 x lanes: what zero points take away from codes."""
        zeros = self._words(block, group, token, lanes) & splat(T.uint16(ZERO_STEPS), lanes)
        value = T.cast(T.cast(zeros, vector("int32", lanes)), vector("float32", lanes))
        return self._times(value, self._top(group) / ZERO_STEPS, lanes)

    def exact(self, element: Any, lanes: int) -> Any:
        """f32 x lanes: elements ``element`` ... of the exact first token."""
        return self._halves(self.layout.exact_at + element * 2, lanes)

    def recent_key(self, block: Any, element: Any, lane: Any, lanes: int) -> Any:
        """f32 x lanes: an element of tokens 16 * ``block`` + ``lane`` ... of the ring."""
        return self._halves(self.layout.recent_key_at(block, element, lane), lanes)

    def recent_value(self, token: Any, element: Any, lanes: int) -> Any:
        """f32 x lanes: elements ``element`` ... of token ``token`` of the ring."""
        return self._halves(self.layout.recent_value_at(token, element), lanes)

    def _halves(self, at: Any, lanes: int) -> Any:
        half = T.reinterpret(load(self.buffer, [self.head, at], 2 * lanes), dtype=vector("float16", lanes))
        return T.cast(half, vector("float32", lanes))

    def _top(self, group: Any) -> int:
        """The highest code of a group."""
        return self.layout.parts[group].top if self.layout.scheme.low else self.layout.top

    @staticmethod
    def _times(value: Any, factor: float, lanes: int) -> Any:
        return value if factor == 1 else value * splat(T.float32(factor), lanes)

    def _words(self, block: Any, group: Any, token: Any, lanes: int) -> Any:
        word = 0 if self.layout.scheme.low else group
        place = [self.head, self.layout.affine_at(block, word) + token * AFFINE_BYTES]
        return T.reinterpret(load(self.buffer, place, AFFINE_BYTES * lanes), dtype=vector("uint16", lanes))


def _bit_field(line: Any, width: int, field: int, position: int, lanes: int) -> Any:
    """Bit field ``field`` of every byte, moved to bit ``position``; the mask drops what shifts carry across bytes."""
    if width == 8:
        return line
    shift = width * field - position
    if shift:
        words = T.reinterpret(line, dtype=vector("uint32", lanes))
        amount = splat(T.uint32(abs(shift)), lanes)
        words = words >> amount if shift > 0 else words << amount
        line = T.reinterpret(words, dtype=vector("uint8", 4 * lanes))
    return line & splat(T.uint8(((1 << width) - 1) << position), 4 * lanes)
