"""Recognise gated activations.

In: ``multiply(f(g), u)`` in either order, where f(g) is ``g * sigmoid(g)``, ``silu``, ``gelu`` or ``gelu_tanh``. Out:
``glu(g, u)``; when g and u are the two halves of one value (a joined gate/up product), ``glu`` of that value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bitwright import relax_ops
from bitwright.passes.base import column_slice, operator_name, rewrite, same_matrix, with_event
from bitwright.program import Program

_ACTIVATIONS = {"relax.nn.silu": "silu", "relax.nn.gelu": "gelu", "relax.nn.gelu_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class FuseGlu:
    """See the module's description."""

    name: str = "fuse_glu"

    def __call__(self, program: Program) -> Program:
        fused = 0

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            nonlocal fused
            if operator_name(value) != "relax.multiply":
                return None
            for activated, up in (value.args, reversed(value.args)):
                match = _activation(rewriter.bound, activated)
                if match is None or not same_matrix(match[1], up):
                    continue
                activation, gate = match
                fused += 1
                whole = _halves(rewriter.bound, gate, up)
                arguments = [whole] if whole is not None else [gate, up]
                return relax_ops.call("glu", arguments, activation=activation)
            return None

        return with_event(replace(program, module=rewrite(program.module, visit)), self.name, gates=fused)


def _activation(bound: dict[Any, Any], variable: Any) -> tuple[str, Any] | None:
    value: Any = bound.get(variable)
    name = operator_name(value)
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name], value.args[0]
    if name != "relax.multiply":
        return None
    for left, right in (value.args, reversed(value.args)):
        sigmoid: Any = bound.get(right)
        if operator_name(sigmoid) == "relax.sigmoid" and sigmoid.args[0].same_as(left):
            return "silu", left
    return None


def _halves(bound: dict[Any, Any], gate: Any, up: Any) -> Any:
    """The value of which ``gate`` is the first and ``up`` the second half of the columns, if there is one."""
    sources = [column_slice(bound, v) for v in (gate, up)]
    if sources[0] is None or sources[1] is None:
        return None
    (first, begin), (second, middle) = sources[0], sources[1]
    width = int(gate.ty.shape.values[1])
    whole = int(first.ty.shape.values[1])
    return first if first.same_as(second) and (begin, middle, whole) == (0, width, 2 * width) else None
