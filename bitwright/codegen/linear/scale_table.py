"""Scales of a tile's groups in scratch, and their products with the scales of activations.

A group's sum of code * activation counts weight scale * activation scale. That product for every sum costs as much as
an eighth of the dot products of a group of 32: Zen multiplies floats and bytes in the same two pipes, while it loads
and scales by powers of two in others. Scales of int8 activations have ``LEVELS`` mantissas only, so a tile that many
tokens read keeps its scales multiplied by each, and a token's exponent is applied by ``vscalefps``. Exact: a half times
four bits fits single precision, so that the result is to the bit that of a multiplication.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import llvm, load, splat, store, vector
from bitwright.codegen.isa import Isa
from bitwright.codegen.quantized_rows import LEVELS, SCALE_BITS
from bitwright.codegen.vectormath import hold

MIN_TOKENS = 48
"""Tokens from which the products are worth computing ahead."""

_LEVEL_BYTE, _LEVEL_BIT = 2, 7 - SCALE_BITS[1]
"""Where the highest bits behind the leading one lie in a float: up to bit 6 of byte 2 (little endian)."""

_CURRENT_ROUNDING = 4


class ScaleTable:
    """Scratch f32[groups, levels, columns, lanes]; level m of a scale is scale * (1 + m / LEVELS).

    Args:
        leveled: keep all levels, else the scales alone (level 0).
    """

    def __init__(self, groups: int, columns: int, isa: Isa, *, leveled: bool) -> None:
        self.lanes, self.leveled = isa.lanes, leveled
        self._buffer = T.alloc_buffer((groups, LEVELS if leveled else 1, columns, isa.lanes), "float32")

    def fill(self, index: Any, column: int, scale: Any, many: Any) -> None:
        """Keep ``scale`` of group ``index``; ``many``: a condition, whether levels will be read."""
        value = hold(scale)
        store(self._buffer, value, [index, 0, column, 0], self.lanes)
        if not self.leveled:
            return
        with T.If(many), T.Then():
            for level in range(1, LEVELS):
                product = value * splat(T.float32(1 + level / LEVELS), self.lanes)
                store(self._buffer, product, [index, level, column, 0], self.lanes)

    def multiplied(self, index: Any, x_scales: Any, at: tuple[Any, Any]) -> Callable[[int], Any]:
        """By column: scale * x_scales[at], by a multiplication."""
        factor = splat(x_scales[at], self.lanes)
        return lambda column: load(self._buffer, [index, 0, column, 0], self.lanes) * factor

    def looked_up(self, index: Any, x_scales: Any, at: tuple[Any, Any]) -> Callable[[int], Any]:
        """The same, of a scale of an activation that has at most ``SCALE_BITS[1]`` bits behind the leading one."""
        lanes, single = self.lanes, vector("float32", self.lanes)
        level = T.Bind(_mantissa(x_scales, *at))
        constants = (splat(T.float32(0), lanes), T.int16(-1), T.int32(_CURRENT_ROUNDING))  # unmasked
        getexp, scalef = (f"llvm.x86.avx512.mask.{name}.ps.{32 * lanes}" for name in ("getexp", "scalef"))
        exponent = hold(llvm(getexp, single, splat(x_scales[at], lanes), *constants))

        def product(column: int) -> Any:
            scale = load(self._buffer, [index, level, column, 0], lanes)
            return llvm(scalef, single, scale, exponent, *constants)

        return product


def _mantissa(x_scales: Any, row: Any, group: Any) -> Any:
    """Which level x_scales[row, group] asks for, int64.

    The byte is read apart from the float and taken apart by an instruction of its own: LLVM would take it out of the
    vector that the float is spread to, or do this for several rows in one vector; moving numbers from there is slow.
    """
    rows, groups = x_scales.shape
    view = T.decl_buffer((rows, groups * 4), "uint8", data=x_scales.data)
    byte = T.cast(view[row, group * 4 + _LEVEL_BYTE], "uint32")
    level = llvm("llvm.x86.bmi.bextr.32", "uint32", byte, T.uint32(_LEVEL_BIT | SCALE_BITS[1] << 8))
    return T.cast(level, "int64")
