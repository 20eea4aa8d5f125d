"""The read bandwidth of this machine: the ceiling of every decode kernel, measured by a loop that only reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.autotune.timing import aligned, median_seconds
from bitwright.codegen.isa import Isa

OUT_WORDS = 8
"""u64 results per thread: one cache line, so that threads do not share one."""

_UNROLL = 8
MIB = 1 << 20


def read_block(isa: Isa) -> int:
    """Bytes one step of the loop reads; a remainder of the buffer smaller than this per thread is not read."""
    return _UNROLL * 4 * isa.lanes


def build_read_bandwidth(isa: Isa, name: str = "read_bandwidth") -> Any:
    """PrimFunc (buffer u8[n], out u64[threads * 8]): every thread sums its part of the buffer into its eight words.

    The number of threads is the length of ``out`` / 8: one reads with one core, as many as the pool has with all.
    """
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import Registers, kernel, load, loop, splat, stack, store, symbol, vector

    words, line, block = vector("uint64", isa.lanes // 2), 4 * isa.lanes, read_block(isa)
    with kernel(name) as function:
        buffer = function.tensor("buffer", (symbol("n"),), "uint8")
        out = function.tensor("out", (symbol("slots"),), "uint64")
        threads = out.shape[0] // OUT_WORDS
        steps = buffer.shape[0] // (threads * block)

        def read_part(thread: Any) -> None:
            sums = Registers(_UNROLL, words)
            for index in range(_UNROLL):
                sums[index] = splat(T.uint64(0), isa.lanes // 2)
            with loop(steps) as step:
                for index in range(_UNROLL):
                    start = (thread * steps + step) * block + index * line
                    sums[index] = sums[index] + T.reinterpret(load(buffer, [start], line), dtype=words)
            total = sums[0]
            for index in range(1, _UNROLL):
                total = total + sums[index]
            staged = stack((isa.lanes // 2,), "uint64")
            store(staged, total, [0], isa.lanes // 2)
            for index in range(OUT_WORDS):
                T.buffer_store(out, staged[index % (isa.lanes // 2)], [thread * OUT_WORDS + index])

        with T.If(threads == T.int64(1)):
            with T.Then():  # without the cost of starting a parallel loop
                read_part(T.int64(0))
            with T.Else(), loop(threads, "parallel") as thread:
                read_part(thread)
    return function.func


@dataclass(frozen=True)
class ReadBandwidth:
    """One measurement: ``bytes_per_second`` is the median of repeated reads of ``nbytes`` by ``threads`` threads."""

    level: str
    nbytes: int
    threads: int
    bytes_per_second: float


def measure_read_bandwidth(
    read: Any, isa: Isa, threads: int, sizes: dict[str, int], *, seconds: float = 0.2
) -> Iterator[ReadBandwidth]:
    """Measures with one thread and with all.

    Args:
        read: the compiled function of ``build_read_bandwidth(isa)``.
        threads: what "all" is; the pool must have as many.
        sizes: bytes to read at once, by name, such as {"dram": 512 MiB, "l3": 16 MiB, "l2": 512 KiB}.
        seconds: time spent on each figure.
    """
    import tvm_ffi

    from bitwright.errors import InternalError

    for level, nbytes in sizes.items():
        buffer = aligned(nbytes)
        buffer.fill(1)  # written, so that every page exists
        for count in sorted({1, threads}):
            if nbytes < count * read_block(isa):
                raise InternalError(f"{nbytes} bytes are too few for {count} threads", where="measure_read_bandwidth")
            out = aligned(8 * count * OUT_WORDS).view(np.uint64)
            arguments = (tvm_ffi.from_dlpack(buffer), tvm_ffi.from_dlpack(out))
            yield ReadBandwidth(level, nbytes, count, nbytes / median_seconds(read, arguments, seconds))
