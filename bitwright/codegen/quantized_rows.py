"""How rows of activations are quantized for the linear layers that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitwright.codegen.layout import INPUT_MULTIPLE, TensorSpec
from bitwright.errors import UnsupportedError

LOW_BITS = 7
"""With two terms a number is 2**7 * high + low: both are int8, and the low term is between -64 and 63."""

LARGEST = {1: 127, 2: 127 << LOW_BITS}
"""The integer that the largest magnitude of a group becomes, by number of terms; a little less where the scale was
rounded up."""

SCALE_BITS = {1: 3, 2: 23}
"""Bits behind the leading one that a scale of activations has, by number of terms; scales are rounded up to them.

So few of them that kernels can hold a table of what weights' scales times each mantissa are (``linear.scale_table``).
"""
LEVELS = 1 << SCALE_BITS[1]
"""Mantissas of the scales of int8 activations."""


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of ``group`` numbers that share a scale, each number an integer of one or two int8 terms.

    With one term the error is at most 1/225 of the group's largest magnitude (1/254, 2**-8, if its scale needs no
    rounding), with two 1/32512 (2**-15).

    Attributes:
        group: inputs that share a scale; 0 means the whole row.
        terms: 1 (a8) or 2 (a16): a row of ``terms * width`` int8 holds the high terms, then the low ones.
    """

    group: int
    terms: Literal[1, 2] = 1

    def groups(self, width: int) -> int:
        return width // self.group if self.group else 1

    @property
    def name(self) -> str:
        return f"a{8 * self.terms}g{self.group}"

    @classmethod
    def parse(cls, name: str) -> QuantizedRows:
        """The inverse of ``name``."""
        bits, group = name.removeprefix("a").split("g")
        return cls(int(group), 1 if bits == "8" else 2)

    def tensors(self, rows: int, width: int) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        """x8, the scale of each group, and the sum of each group's integers."""
        grouped = (rows, self.groups(width))
        return (
            TensorSpec("x8", "int8", (rows, self.terms * width)),
            TensorSpec("scale", "float32", grouped),
            TensorSpec("sum", "int32", grouped),
        )

    def check(self, width: int) -> None:
        """Raises UnsupportedError if rows of ``width`` numbers cannot be quantized like this."""
        group = self.group or width
        if width % INPUT_MULTIPLE or group % INPUT_MULTIPLE or width % group:
            raise UnsupportedError(
                f"cannot quantize activations of {width} inputs in groups of {group}",
                limit=f"groups are multiples of {INPUT_MULTIPLE} that divide the inputs",
                remedy="use a smaller group, or f16 for this layer",
            )
