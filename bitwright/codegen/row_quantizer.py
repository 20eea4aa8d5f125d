"""Quantization of rows that another kernel has just computed, so that the float row never leaves the cache.

A kernel that may quantize its result asks for a :class:`RowOutput`: float rows, or what ``quantize_activation`` would
make of them (x8, scale and sum, see ``codegen.activation``).
"""

from __future__ import annotations

from typing import Any

from bitwright.codegen.activation import quantize_row
from bitwright.codegen.builder import Kernel, stack
from bitwright.codegen.quantized_rows import QuantizedRows


class RowOutput:
    """Declares the result arguments of a kernel with rows of ``width`` floats.

    Args:
        quantize: None for a float result y[n, width].
    """

    def __init__(self, function: Kernel, rows: Any, width: int, quantize: QuantizedRows | None, lanes: int) -> None:
        self._width, self._lanes, self._quantize = width, lanes, quantize
        if quantize is None:
            self._y = function.tensor("y", (rows, width), "float32")
            return
        quantize.check(width)
        x8, scale, total = quantize.tensors(1, width)
        self._results = (
            function.tensor("x8", (rows, x8.shape[1]), x8.dtype),
            function.tensor("scale", (rows, scale.shape[1]), scale.dtype),
            function.tensor("sum8", (rows, total.shape[1]), total.dtype),
        )

    def row(self, i: Any) -> tuple[Any, Any]:
        """Where row ``i`` is to be stored: (buffer, row index in it)."""
        if self._quantize is None:
            return self._y, i
        return stack((1, self._width), "float32"), 0

    def finish(self, stored: tuple[Any, Any], i: Any) -> None:
        """To be called once the whole row is stored."""
        if self._quantize is None:
            return
        quantize_row(self._lanes, self._quantize, self._width, stored, self._results, i)
