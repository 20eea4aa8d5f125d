"""The largest of a row of logits: what greedy decoding needs of them.

Arguments: x f32[1, N], best i64[1] (result): the lowest index of the largest element, -1 if an element
is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.team import THREADS, Phase, TeamKernel, share

_SIGNLESS, _INFINITY = 0x7FFFFFFF, 0x7F800000
"""Bits of a float32 without its sign, which order magnitudes as the floats do; those of infinity. NaN has more."""

_LINE = 16
"""Elements between the slots of two threads: a cache line of float32."""


def argmax_team_kernel(width: int, lanes: int, name: str = "argmax") -> TeamKernel:
    """Two phases: every thread finds the largest of its share, then one takes the largest of those."""

    def search(buffers: Mapping[str, Any], thread: Any, threads: Any) -> None:
        from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

        from bitwright.codegen.builder import Registers, load, loop, splat, stack, store, vector
        from bitwright.codegen.vectormath import LOWEST

        x = buffers["x"]
        vectors = width // lanes
        single, word = vector("float32", lanes), vector("int32", lanes)
        largest, at, magnitude = Registers(1, single), Registers(1, word), Registers(1, word)
        largest[0], at[0] = splat(T.float32(LOWEST), lanes), splat(T.int32(0), lanes)
        magnitude[0] = splat(T.int32(0), lanes)
        start, end = share(vectors, thread, threads)
        with loop(end - start, start=start) as step:
            value = load(x, [0, step * lanes], lanes)
            index = T.ramp(T.cast(step * lanes, "int32"), T.int32(1), lanes)
            at[0] = T.Select(value > largest[0], index, at[0])
            largest[0] = T.max(largest[0], value)
            magnitude[0] = T.max(magnitude[0], T.reinterpret(value, dtype=word) & splat(T.int32(_SIGNLESS), lanes))
        values, indices, bits = stack((lanes,), "float32"), stack((lanes,), "int32"), stack((lanes,), "int32")
        for staged, register in ((values, largest), (indices, at), (bits, magnitude)):
            store(staged, register[0], [0], lanes)
        best, index, top = Registers(1, "float32"), Registers(1, "int32"), Registers(1, "int32")
        best[0], index[0], top[0] = values[0], indices[0], bits[0]
        for lane in range(1, lanes):
            _take(T, best, index, values[lane], indices[lane])
            top[0] = T.max(top[0], bits[lane])
        for column in range(vectors * lanes, width):
            _take(T, best, index, x[0, column], T.int32(column))
            top[0] = T.max(top[0], T.reinterpret(x[0, column], dtype="int32") & T.int32(_SIGNLESS))
        slot = T.int64(thread) if isinstance(thread, int) else thread
        T.buffer_store(buffers["values"], best[0], [slot, T.int64(0)])
        T.buffer_store(buffers["indices"], index[0], [slot, T.int64(0)])
        T.buffer_store(buffers["indices"], top[0], [slot, T.int64(1)])

    def choose(buffers: Mapping[str, Any], _thread: Any, threads: Any) -> None:
        from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

        from bitwright.codegen.builder import Registers, loop

        best, index, top = Registers(1, "float32"), Registers(1, "int32"), Registers(1, "int32")
        values, indices = buffers["values"], buffers["indices"]
        best[0], index[0], top[0] = values[0, 0], indices[0, 0], indices[0, 1]
        with loop(threads - 1, start=1) as slot:
            _take(T, best, index, values[slot, 0], indices[slot, 0])
            top[0] = T.max(top[0], indices[slot, 1])
        found = T.Select(top[0] < T.int32(_INFINITY), index[0], T.int32(-1))
        T.buffer_store(buffers["best"], T.cast(found, "int64"), [T.int64(0)])

    return TeamKernel(
        name,
        (TensorSpec("x", "float32", (1, width)), TensorSpec("best", "int64", (1,))),
        1,
        (Phase(search), Phase(choose, split=False)),
        (TensorSpec("values", "float32", (THREADS, _LINE)), TensorSpec("indices", "int32", (THREADS, _LINE))),
    )


def _take(T: Any, best: Any, index: Any, value: Any, at: Any) -> None:
    better = T.Or(value > best[0], T.And(value == best[0], at < index[0]))
    index[0] = T.Select(better, at, index[0])
    best[0] = T.max(best[0], value)
