"""Fold the addition of a bias into the linear layer that feeds it.

In: ``add(linear(x, w), b)`` with ``b`` a parameter of shape [N], in either order, where nothing else reads the
product (it would be computed twice). Out: ``linear(x, w, b)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import bindings, functions, operands, operator_name, rewrite, uses, with_event
from bitwright.program import Program


@dataclass(frozen=True)
class FuseBias:
    """See the module's description."""

    name: str = "fuse_bias"

    def __call__(self, program: Program) -> Program:
        fused = 0
        sums = {v for _, function in functions(program.module) for v in _sums_of_private_products(function)}

        def visit(rewriter: Any, variable: Any, value: Any) -> Any:
            nonlocal fused
            if variable not in sums:
                return None
            for linear_side, bias in (value.args, reversed(value.args)):
                linear = rewriter.bound.get(linear_side)
                if relax_ops.name_of(linear) == "linear" and _is_bias(rewriter, linear, bias):
                    fused += 1
                    return relax_ops.call("linear", [*linear.args, bias], **_attributes(linear))
            return None

        return with_event(replace(program, module=rewrite(program.module, visit)), self.name, biases=fused)


def _sums_of_private_products(function: Any) -> Iterator[Any]:
    """Variables bound to a sum of which one term is a linear layer's result that only this sum reads."""
    counts = uses(function)
    private = {b.var for b in bindings(function) if relax_ops.name_of(b.value) == "linear" and counts[b.var] == 1}
    for binding in bindings(function):
        if operator_name(binding.value) == "relax.add" and any(term in private for term in operands(binding.value)):
            yield binding.var


def _attributes(call: Any) -> dict[str, Any]:
    return {str(k): v for k, v in call.attrs.items()}


def _is_bias(rewriter: Any, linear: Any, bias: Any) -> bool:
    if len(linear.args) > 2 or not isinstance(bias, relax.Var) or bias.name not in rewriter.parameters:
        return False
    shape = [int(d) for d in bias.ty.shape.values]
    return shape == [int(linear.args[1].ty.shape.values[0])]
