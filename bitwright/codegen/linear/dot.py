"""Byte dot products: sums of four products of an unsigned code and an int8 activation in each 32-bit lane.

A chain of steps accumulates into a *partial* vector; ``widen`` turns it into int32. Partials of the AVX2 path are
int16, so a chain may only be ``steps`` long: each step adds at most 2 * (2**bits - 1) * 127 in magnitude to a
16-bit lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import llvm, splat, vector
from bitwright.codegen.isa import Isa

UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class Dot:
    """Plain IR, correct on any target: bytes are widened to 32-bit lanes one at a time.

    Attributes:
        bias: what ``prepare`` subtracts from every code; the kernel adds bias * sum(activations) back.
        partial: dtype of the partial vector.
        steps: longest chain before ``widen``.
        in_place: the unsigned operand may be as large as 255, so that codes can be multiplied where they lie in a byte.
    """

    lanes: int
    bits: int
    bias: int = 0
    steps: int = UNBOUNDED
    in_place: bool = True

    @property
    def partial(self) -> str:
        return vector("int32", self.lanes)

    def prepare(self, codes: Any) -> Any:
        """Unsigned codes u8 x (4 * lanes) -> the operand that ``step`` takes; done once per code."""
        return codes

    def step(self, partial: Any, operand: Any, x4: Any) -> Any:
        """partial + dot of the operand with the four int8 activations packed in the int32 scalar ``x4``."""
        words = T.reinterpret(operand, dtype=vector("uint32", self.lanes))
        for byte in range(4):
            code = (words >> splat(T.uint32(8 * byte), self.lanes)) & splat(T.uint32(255), self.lanes)
            activation = (x4 << T.int32(24 - 8 * byte)) >> T.int32(24)
            partial = partial + T.cast(code, vector("int32", self.lanes)) * splat(activation, self.lanes)
        return partial

    def widen(self, partial: Any) -> Any:
        """The partial as int32 x lanes."""
        return partial

    def spread(self, value: Any) -> Any:
        """A scalar int32 loaded from memory, in every lane."""
        return splat(value, self.lanes)

    def scaled(self, value: Any, factor: int) -> Any:
        """A scalar int32 loaded from memory times a constant, in every lane."""
        return splat(value * T.int32(factor), self.lanes)

    def _bytes(self, x4: Any) -> Any:
        return T.reinterpret(splat(x4, self.lanes), dtype=vector("int8", 4 * self.lanes))


class VnniDot(Dot):
    """vpdpbusd: exact 32-bit accumulation in one instruction."""

    def step(self, partial: Any, operand: Any, x4: Any) -> Any:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        return llvm(name, self.partial, partial, operand, self._bytes(x4))

    def scaled(self, value: Any, factor: int) -> Any:
        # Without the fence LLVM multiplies in the scalar unit, and a scalar is slow to spread that is not in memory.
        spread = _in_order(splat(value, self.lanes), vector("int32", self.lanes), self.lanes)
        return spread * splat(T.int32(factor), self.lanes)


class MaddDot(Dot):
    """vpmaddubsw into int16 partials, widened by one vpmaddwd."""

    @property
    def partial(self) -> str:
        return vector("int16", 2 * self.lanes)

    def step(self, partial: Any, operand: Any, x4: Any) -> Any:
        pairs = llvm("llvm.x86.avx2.pmadd.ub.sw", self.partial, operand, self._bytes(x4))
        return _in_order(partial + pairs, self.partial, self.lanes)

    def widen(self, partial: Any) -> Any:
        return _add_pairs(partial, self.lanes)

    def spread(self, value: Any) -> Any:
        # Without the fence LLVM moves arithmetic on the splat to the scalar unit, and the result has to come back.
        return _in_order(splat(value, self.lanes), vector("int32", self.lanes), self.lanes)

    def scaled(self, value: Any, factor: int) -> Any:
        return self.spread(value * T.int32(factor))


class EvenMaddDot(Dot):
    """8-bit operands that are even: halves, of 7 bits, are multiplied, and vpmaddwd doubles what it adds.

    A pair of products is at most 2 * 127 * 127 = 32258.
    """

    def prepare(self, codes: Any) -> Any:
        return codes >> splat(T.uint8(1), 4 * self.lanes)

    def step(self, partial: Any, operand: Any, x4: Any) -> Any:
        pairs = llvm("llvm.x86.avx2.pmadd.ub.sw", vector("int16", 2 * self.lanes), operand, self._bytes(x4))
        return _in_order(partial + _add_pairs(pairs, self.lanes, 2), self.partial, self.lanes)


class SignedMaddDot(Dot):
    """8-bit codes: (code - 128) is split into its magnitude and its sign, which moves to the activation.

    |code - 128| <= 128 and |activation| <= 127, so a pair of products is at most 32512 and vpmaddubsw cannot saturate.
    """

    def prepare(self, codes: Any) -> Any:
        return codes ^ splat(T.uint8(128), 4 * self.lanes)

    def step(self, partial: Any, operand: Any, x4: Any) -> Any:
        signed = vector("int8", 4 * self.lanes)
        code = T.reinterpret(operand, dtype=signed)
        magnitude = T.reinterpret(
            llvm("llvm.x86.avx2.psign.b", signed, code, code), dtype=vector("uint8", 4 * self.lanes)
        )
        activation = llvm("llvm.x86.avx2.psign.b", signed, self._bytes(x4), code)
        pairs = llvm("llvm.x86.avx2.pmadd.ub.sw", vector("int16", 2 * self.lanes), magnitude, activation)
        return _in_order(partial + _add_pairs(pairs, self.lanes), self.partial, self.lanes)


def _in_order(value: Any, dtype: str, lanes: int) -> Any:
    """The value, computed as written: LLVM would rebalance the chain of additions into a tree that spills registers."""
    single = vector("float32", lanes)
    fenced = llvm("llvm.arithmetic.fence", single, T.reinterpret(value, dtype=single))
    return T.reinterpret(fenced, dtype=dtype)


def _add_pairs(pairs: Any, lanes: int, factor: int = 1) -> Any:
    factors = splat(T.int16(factor), 2 * lanes)
    return llvm("llvm.x86.avx2.pmadd.wd", vector("int32", lanes), pairs, factors)


def _chain_steps(bits: int) -> int:
    """Steps whose int16 sum cannot saturate, rounded down to a power of two so that chains divide a chunk."""
    return 1 << (32767 // (2 * 127 * ((1 << bits) - 1))).bit_length() - 1


def dot_of(isa: Isa, bits: int, *, even: bool = False) -> Dot:
    """The dot product of ``bits``-wide operands on ``isa``; ``even``: all of them are even numbers."""
    if isa.dot == "portable":
        return Dot(isa.lanes, bits)
    if isa.dot == "vnni":
        return VnniDot(isa.lanes, bits)
    if bits == 8 and even:
        return EvenMaddDot(isa.lanes, bits, in_place=False)
    if bits == 8:
        return SignedMaddDot(isa.lanes, bits, bias=128, in_place=False)
    return MaddDot(isa.lanes, bits, steps=_chain_steps(bits), in_place=False)
