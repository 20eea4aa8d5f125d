"""Let the product of gate and up compute the gated activation, where it is for any number of tokens.

In: ``glu_quantized(packed_linear(...))`` of a joined gate/up product that nothing else reads. Out: one ``packed_glu``
call, where there is a kernel for it. Decoding keeps the two: its results are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bitwright import relax_ops
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear import joins_glu, linear_spec
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.passes.base import bindings, functions, rewrite, static_rows, uses, with_event
from bitwright.program import Program
from bitwright.runs import parse_weights


@dataclass(frozen=True)
class FusePackedGlu:
    """See the module's description. ``isa``: what kernels are generated for."""

    isa: Isa
    name: str = "fuse_packed_glu"

    def __call__(self, program: Program) -> Program:
        found = {v for _, function in functions(program.module) for v in self._gates(function)}

        def visit(rewriter: Any, variable: Any, value: Any) -> Any:
            if variable not in found:
                return None
            product = rewriter.bound[value.args[0]]
            attributes = {str(name): attribute for name, attribute in product.attrs.items()}
            gate = {name: value.attrs[name] for name in ("activation", "group", "terms")}
            return relax_ops.call("packed_glu", product.args, **attributes, **gate)

        module = rewrite(program.module, visit)
        return with_event(replace(program, module=module), self.name, products=len(found))

    def _gates(self, function: Any) -> Iterator[Any]:
        """Variables bound to a gated activation that its product can compute."""
        bound = {b.var: b.value for b in bindings(function)}
        counts = uses(function)
        for variable, value in bound.items():
            if relax_ops.name_of(value) != "glu_quantized" or len(value.args) != 1 or counts[value.args[0]] != 1:
                continue
            product = bound.get(value.args[0])
            if relax_ops.name_of(product) == "packed_linear" and self._joins(product, value):
                yield variable

    def _joins(self, product: Any, gate: Any) -> bool:
        attrs = product.attrs
        spec = linear_spec(
            parse_weights(str(attrs["scheme"])),
            int(attrs["outputs"]),
            int(attrs["inputs"]),
            bias=bool(attrs["has_bias"]),
            rows=static_rows(product.args[0]),
        )
        return joins_glu(spec, QuantizedRows(int(gate.attrs["group"]), int(gate.attrs["terms"])), self.isa)  # type: ignore[arg-type]
