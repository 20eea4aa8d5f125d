"""The largest of a row of logits: what greedy decoding needs of them.

Arguments: x f32[1, N], best i64[1] (result): the lowest index of the largest element, -1 if an element
is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.team import THREADS, Phase, TeamKernel, share

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
        largest, at = Registers(1, vector("float32", lanes)), Registers(1, vector("int32", lanes))
        # Zero times a finite number is zero: the sum is NaN as soon as one is not.
        finite = Registers(1, vector("float32", lanes))
        largest[0], at[0] = splat(T.float32(LOWEST), lanes), splat(T.int32(0), lanes)
        finite[0] = splat(T.float32(0), lanes)
        start, end = share(vectors, thread, threads)
        with loop(end - start, start=start) as step:
            value = load(x, [0, step * lanes], lanes)
            index = T.ramp(T.cast(step * lanes, "int32"), T.int32(1), lanes)
            at[0] = T.Select(value > largest[0], index, at[0])
            largest[0] = T.max(largest[0], value)
            finite[0] = finite[0] + value * splat(T.float32(0), lanes)
        values, indices = stack((lanes,), "float32"), stack((lanes,), "int32")
        # What is not finite makes the largest of the lane NaN, and no comparison with NaN holds.
        store(values, largest[0] + finite[0], [0], lanes)
        store(indices, at[0], [0], lanes)
        best, index = Registers(1, "float32"), Registers(1, "int32")
        best[0], index[0] = values[0], indices[0]
        for lane in range(1, lanes):
            _take(T, best, index, values[lane], indices[lane])
        for column in range(vectors * lanes, width):
            _take(T, best, index, x[0, column], T.int32(column))
        slot = T.int64(thread) if isinstance(thread, int) else thread
        T.buffer_store(buffers["values"], best[0], [slot, T.int64(0)])
        T.buffer_store(buffers["indices"], index[0], [slot, T.int64(0)])

    def choose(buffers: Mapping[str, Any], _thread: Any, threads: Any) -> None:
        from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

        from bitwright.codegen.builder import Registers, loop

        best, index = Registers(1, "float32"), Registers(1, "int32")
        best[0], index[0] = buffers["values"][0, 0], buffers["indices"][0, 0]
        with loop(threads - 1, start=1) as slot:
            _take(T, best, index, buffers["values"][slot, 0], buffers["indices"][slot, 0])
        T.buffer_store(buffers["best"], T.cast(index[0], "int64"), [T.int64(0)])

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
