"""What the product of gate and up computes that computes the gated activation as well."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.codegen.elementwise import Function
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.spec import AnyLinear, LinearSpec
from bitwright.codegen.quantized_rows import QuantizedRows


@dataclass(frozen=True)
class GluLinearSpec:
    """``linear`` has twice as many outputs as a row of the result; ``quantize`` says how that is quantized."""

    linear: LinearSpec
    function: Function
    quantize: QuantizedRows

    @property
    def width(self) -> int:
        return self.linear.outputs // 2

    @property
    def name(self) -> str:
        return f"{self.linear.name}_{self.function}_glu_{self.quantize.name}"


def joins_glu(linear: AnyLinear, quantize: QuantizedRows, isa: Isa) -> bool:
    """Is there such a kernel? For packed weights of one scheme whose halves are whole tiles, and tiles whole groups."""
    if not isinstance(linear, LinearSpec) or not linear.scheme.terms or linear.bias or linear.residual or linear.rows:
        return False
    rows, group = linear.layout(isa).rows, quantize.group
    return linear.outputs % (2 * rows) == 0 and group > 0 and rows % group == 0 and group % isa.lanes == 0
