"""From codes to the bytes that kernels multiply: codes as they are, or what they look up in a codebook.

A table lies in registers. ``vpermb`` finds one of 64 bytes by the six lowest bits of a byte; narrower tables repeat, so
that what lies above a code need not be cleared. ``vpshufb`` finds one of 16 bytes in each 128-bit lane; wider tables
are several of those, chosen between by the code's upper bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, llvm, load, splat, vector
from bitwright.codegen.linear.arguments import Arguments

SHUFFLED = 16
"""Entries that one shuffle within 128-bit lanes chooses among."""

_SHUFFLES = {8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}
_PERMUTE = "llvm.x86.avx512.permvar.qi.512"

Bytes = Callable[[Any], Any]


def identity(value: Any) -> Any:
    return value


def looked_up(args: Arguments, prepare: Bytes = identity) -> Bytes:
    """What turns codes u8 x (4 * lanes) into prepared operands; emits the loads of the table.

    Args:
        prepare: done to every byte of the codes or, once, of the table.
    """
    weight, isa, width = args.layout.weight, args.isa, 4 * args.layout.lanes
    if not weight.is_codebook:
        return prepare
    table = args["codebook"]
    if isa.dot == "portable":
        return lambda codes: prepare(_gather(table, codes, width))
    if isa.permute:
        entries = _kept([prepare(load(table, [0], width))], width)
        return lambda codes: llvm(_PERMUTE, vector("uint8", width), entries[0], codes)
    count = max((1 << weight.bits) // SHUFFLED, 1)
    tables = _kept([prepare(_quarter(table, part, width)) for part in range(count)], width)
    shuffle = _SHUFFLES[isa.lanes]

    def look_up(codes: Any) -> Any:
        found = [llvm(shuffle, vector("uint8", width), tables[part], codes) for part in range(count)]
        for bit in range(4, weight.bits):
            found = [_choose(codes, bit, found[i], found[i + 1], width) for i in range(0, len(found), 2)]
        return found[0]

    return look_up


def wraps(args: Arguments) -> bool:
    """Look-ups take the code's lowest bits whatever lies above them: ``vpermb`` in a table that repeats."""
    return args.layout.weight.is_codebook and args.isa.permute


def _kept(values: list[Any], width: int) -> Registers:
    registers = Registers(len(values), vector("uint8", width))
    for index, value in enumerate(values):
        registers[index] = value
    return registers


def _quarter(table: Any, part: int, width: int) -> Any:
    """Entries 16 * part to 16 * part + 15 in every 128-bit lane."""
    words = T.reinterpret(load(table, [SHUFFLED * part], SHUFFLED), dtype="uint32x4")
    repeated = T.Shuffle([words] * (width // SHUFFLED), list(range(width // 4)))
    return T.reinterpret(repeated, dtype=vector("uint8", width))


def _choose(codes: Any, bit: int, lower: Any, upper: Any, width: int) -> Any:
    """Per byte, ``upper`` where the code's bit is set: moved to the sign, which is what blends test."""
    words = T.reinterpret(codes, dtype=vector("uint32", width // 4)) << splat(T.uint32(7 - bit), width // 4)
    signed = T.reinterpret(words, dtype=vector("int8", width))
    return T.Select(signed < splat(T.int8(0), width), upper, lower)


def _gather(table: Any, codes: Any, width: int) -> Any:
    return T.BufferLoad(table, [T.cast(codes, vector("int32", width))])
