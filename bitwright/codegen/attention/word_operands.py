"""Queries, keys and values of a block as words (:mod:`~bitwright.codegen.attention.word_dot`), in scratch.

============ ================================== ===================================================================
queries      i16[rows, D]                       a scale per row
keys         i32[vectors, D / 2, lanes]         lanes are tokens, pairs run along the head; a scale per token
values       i32[tokens / 2, Dv]                lanes are value elements, pairs are tokens; a scale per element
weights      i16[rows, tokens]                  probabilities relative to the largest of the chunk, at most 1
============ ================================== ===================================================================

An odd D is filled up with a zero, Dv up to whole vectors with anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.attention.block import Keys, ceildiv
from bitwright.codegen.attention.word_dot import (
    LARGEST_SUM,
    largest_word,
    paired,
    put_words,
    rounded,
    scaling,
)
from bitwright.codegen.builder import Registers, loop, splat, store, vector
from bitwright.codegen.cache import BLOCK
from bitwright.codegen.vectormath import for_spans, hold, maximum, reduce_lanes

LARGEST_WEIGHT = 8191
"""What a probability of 1 becomes."""


class Queries:
    """Rows of queries."""

    def __init__(self, rows: int, head_dim: int, scale: float, lanes: int) -> None:
        self.head_dim, self.scale, self.lanes = head_dim, scale, lanes
        self.words = T.alloc_buffer((rows, head_dim + head_dim % 2), "int16")
        self.factor = T.alloc_buffer((rows,), "float32")

    def fill(self, rows: Any, padded: Any, query: Callable[[Any, Any, int], Any]) -> None:
        """Convert ``query(row, d, lanes)`` of ``rows`` rows; rows up to ``padded`` become zeros."""
        lanes, limit = self.lanes, largest_word(self.head_dim)
        with loop(rows) as r:
            state = Registers(2, vector("float32", lanes))
            state[0] = splat(T.float32(0), lanes)
            largest = Registers(1, "float32")
            largest[0] = T.float32(0)

            def measure(d: Any, n: int) -> None:
                magnitude = T.fabs(query(r, d, n))
                if n == lanes:
                    state[0] = T.max(state[0], magnitude)
                else:
                    largest[0] = T.max(largest[0], reduce_lanes(magnitude, n, maximum))

            for_spans(self.head_dim, lanes, measure)
            whole = hold(T.max(largest[0], reduce_lanes(state[0], lanes, maximum)))
            inverse, factor = scaling(whole, limit, 1)
            T.buffer_store(self.factor, factor * T.float32(self.scale), [r])

            def convert(d: Any, n: int) -> None:
                put_words(self.words, rounded(query(r, d, n), splat(inverse, n), n), [r, d], n)

            for_spans(self.head_dim, lanes, convert)
            if self.head_dim % 2:
                T.buffer_store(self.words, T.int16(0), [r, self.head_dim])
        with loop(padded - rows, start=rows) as r:
            T.buffer_store(self.factor, T.float32(0), [r])
            with loop(self.words.shape[1]) as d:
                T.buffer_store(self.words, T.int16(0), [r, d])


class KeyWords:
    """Keys of one chunk."""

    def __init__(self, chunk: int, head_dim: int, lanes: int) -> None:
        self.head_dim, self.lanes = head_dim, lanes
        self.pairs = -(-head_dim // 2)
        self.words = T.alloc_buffer((chunk // lanes, self.pairs, lanes), "int32")
        self.factor = T.alloc_buffer((chunk,), "float32")

    def fill(self, keys: Keys, first: Any, end: Any) -> None:
        """Convert keys ``first .. end-1`` and what follows them in their last block, whose words mean nothing."""
        lanes = self.lanes
        first_block = T.Bind(T.floordiv(first, T.int64(BLOCK)))
        with loop(ceildiv(end - first, BLOCK)) as index:
            block = T.Bind(first_block + index)
            for part in range(BLOCK // lanes):
                self._fill_vector(
                    lambda d, part=part: keys.key(block, d, part * lanes, lanes),  # type: ignore[misc]
                    T.Bind(index * (BLOCK // lanes) + part),
                )

    def _fill_vector(self, key: Callable[[Any], Any], at: Any) -> None:
        lanes, single = self.lanes, vector("float32", self.lanes)
        halves, odd = divmod(self.head_dim, 2)
        state = Registers(2, single)
        state[0] = state[1] = splat(T.float32(0), lanes)
        with loop(halves) as half:
            for j in range(2):
                state[j] = T.max(state[j], T.fabs(key(half * 2 + j)))
        if odd:
            state[0] = T.max(state[0], T.fabs(key(T.int64(self.head_dim - 1))))
        inverse, factor = scaling(T.max(state[0], state[1]), largest_word(self.head_dim), lanes)
        store(self.factor, factor, [at * lanes], lanes)
        with loop(halves) as half:
            low, high = (rounded(key(half * 2 + j), inverse, lanes) for j in range(2))
            store(self.words, paired(low, high, lanes), [at, half, 0], lanes)
        if odd:
            last = rounded(key(T.int64(self.head_dim - 1)), inverse, lanes)
            store(self.words, last & splat(T.int32(0xFFFF), lanes), [at, self.pairs - 1, 0], lanes)


class ValueWords:
    """Values of one chunk; their factors also undo that weights are words."""

    def __init__(self, chunk: int, value_dim: int, lanes: int) -> None:
        self.value_dim, self.lanes = value_dim, lanes
        self.vectors = -(-value_dim // lanes)
        self.limit = min(LARGEST_SUM // (chunk * LARGEST_WEIGHT), LARGEST_WEIGHT)
        self.words = T.alloc_buffer((chunk // 2, self.vectors * lanes), "int32")
        self.factor = T.alloc_buffer((self.vectors * lanes,), "float32")

    def fill(self, keys: Keys, first: Any, begin: Any, end: Any) -> None:
        """Convert values of tokens ``first .. end-1``; those before ``begin`` are not read, and become the first's."""
        pairs = T.Bind(ceildiv(end - first, 2))

        def column(offset: Any, n: int) -> None:
            state = Registers(1, vector("float32", n))
            state[0] = splat(T.float32(0), n)
            with loop(end - begin, start=begin) as token:
                state[0] = T.max(state[0], T.fabs(keys.value(token, offset, n)))
            inverse, factor = scaling(state[0], self.limit, n)
            store(self.factor, factor * splat(T.float32(1 / LARGEST_WEIGHT), n), [offset], n)
            with loop(pairs) as pair:
                tokens = [hold(T.max(T.min(first + pair * 2 + j, end - 1), begin)) for j in range(2)]
                low, high = (rounded(keys.value(token, offset, n), inverse, n) for token in tokens)
                store(self.words, paired(low, high, n), [pair, offset], n)

        for_spans(self.value_dim, self.lanes, column)
