"""Int8 quantization of rows that another kernel has just computed, so that the float row never leaves the cache.

A kernel that may quantize its result asks for a :class:`RowOutput`: float rows, or what ``quantize_activation``
would make of
them (x8 i8[n,K], scale f32[n,K/G], sum i32[n,K/G]).
"""

from __future__ import annotations

from typing import Any

from bitwright.codegen.activation import check_groups, quantize_group
from bitwright.codegen.builder import Kernel, loop, stack


class RowOutput:
    """Declares the result arguments of a kernel with rows of ``width`` floats.

    Args:
        quantize: None for a float result y[n, width]; else the group size, 0 for one group per row.
    """

    def __init__(self, function: Kernel, rows: Any, width: int, quantize: int | None, lanes: int) -> None:
        self._width, self._lanes, self._quantize = width, lanes, quantize
        if quantize is None:
            self._y = function.tensor("y", (rows, width), "float32")
            return
        self._group = quantize or width
        check_groups(width, quantize)
        groups = width // self._group
        self._x8 = function.tensor("x8", (rows, width), "int8")
        self._scale = function.tensor("scale", (rows, groups), "float32")
        self._sum = function.tensor("sum8", (rows, groups), "int32")

    def row(self, i: Any) -> tuple[Any, Any]:
        """Where row ``i`` is to be stored: (buffer, row index in it)."""
        if self._quantize is None:
            return self._y, i
        return stack((1, self._width), "float32"), 0

    def finish(self, stored: tuple[Any, Any], i: Any) -> None:
        """To be called once the whole row is stored."""
        if self._quantize is None:
            return
        buffer, source = stored
        with loop(self._width // self._group) as g:
            quantize_group(self._lanes, self._group, (buffer, source), self._x8, self._scale, self._sum, i, g)
