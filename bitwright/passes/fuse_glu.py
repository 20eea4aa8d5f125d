"""Recognise gated activations.

In: ``multiply(f(g), u)`` in either order, where f(g) is ``g * sigmoid(g)``, ``silu``, ``gelu`` or ``gelu_tanh``. Out:
``glu(g, u)``; when g and u are the two halves of one value (a joined gate/up product), ``glu`` of that value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import rewrite, same_matrix, with_event
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


def operator_name(value: Any) -> str:
    """Full name of the operator that ``value`` calls; empty if it is no operator call."""
    return str(value.op.name) if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""


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
    sources = [_column_slice(bound, v) for v in (gate, up)]
    if sources[0] is None or sources[1] is None:
        return None
    (first, begin), (second, middle) = sources[0], sources[1]
    width = int(gate.ty.shape.values[1])
    whole = int(first.ty.shape.values[1])
    return first if first.same_as(second) and (begin, middle, whole) == (0, width, 2 * width) else None


def _column_slice(bound: dict[Any, Any], variable: Any) -> tuple[Any, int] | None:
    """(source, first column) of a slice along the columns, whether by ``strided_slice`` or as a part of ``split``."""
    value: Any = bound.get(variable)
    if operator_name(value) == "relax.strided_slice":
        axes, begin = (list(value.args[i]) for i in (1, 2))
        return (value.args[0], int(begin[0])) if len(axes) == 1 and int(axes[0]) in (1, -1) else None
    if not isinstance(value, relax.TupleGetItem):
        return None
    split: Any = bound.get(value.tuple_value)
    if operator_name(split) != "relax.split" or int(split.attrs.axis) not in (1, -1):
        return None
    widths = [int(part.shape.values[1]) for part in value.tuple_value.ty.fields]
    return split.args[0], sum(widths[: value.index])
