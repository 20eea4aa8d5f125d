"""Fold the addition of a bias into the linear layer that feeds it.

In: ``add(linear(x, w), b)`` with ``b`` a parameter of shape [N], in either order. Out: ``linear(x, w, b)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import rewrite, with_event
from bitwright.program import Program


@dataclass(frozen=True)
class FuseBias:
    """See the module's description."""

    name: str = "fuse_bias"

    def __call__(self, program: Program) -> Program:
        fused = 0

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            nonlocal fused
            if not isinstance(value, relax.Call) or value.op != tvm.ir.Op.get("relax.add"):
                return None
            for linear_side, bias in (value.args, reversed(value.args)):
                linear = rewriter.bound.get(linear_side)
                if relax_ops.name_of(linear) == "linear" and _is_bias(rewriter, linear, bias):
                    fused += 1
                    return relax_ops.call("linear", [*linear.args, bias], **_attributes(linear))
            return None

        return with_event(replace(program, module=rewrite(program.module, visit)), self.name, biases=fused)


def _attributes(call: Any) -> dict[str, Any]:
    return {str(k): v for k, v in call.attrs.items()}


def _is_bias(rewriter: Any, linear: Any, bias: Any) -> bool:
    if len(linear.args) > 2 or not isinstance(bias, relax.Var) or bias.name not in rewriter.parameters:
        return False
    shape = [int(d) for d in bias.ty.shape.values]
    return shape == [int(linear.args[1].ty.shape.values[0])]
