"""Let the kernel that computes an activation quantize it as well.

In: ``quantize_activation(y)`` where y is the result of a normalisation, a gated activation or a rotation and nothing
else reads it. Out: one ``norm_quantized``, ``add_norm_quantized``, ``glu_quantized`` or ``rotate_quantized`` call; the
float activation is never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import bindings, functions, operator_name, rewrite, uses, with_event
from bitwright.program import Program

# What becomes of a binding: (the new operands in place) -> replacement.
_Action = Callable[[Any], Any]

_NORMS = {"relax.nn.rms_norm": "rms", "relax.nn.layer_norm": "layer"}


@dataclass(frozen=True)
class FuseQuantize:
    """See the module's description."""

    name: str = "fuse_quantize"

    def __call__(self, program: Program) -> Program:
        actions: dict[Any, _Action] = {}
        fused = 0
        for _, function in functions(program.module):
            found = _actions(function)
            actions.update(found)
            fused += sum(
                b.var in found and relax_ops.name_of(b.value) == "quantize_activation" for b in bindings(function)
            )

        def visit(_rewriter: Any, variable: Any, value: Any) -> Any:
            return actions[variable](value) if variable in actions else None

        return with_event(replace(program, module=rewrite(program.module, visit)), self.name, activations=fused)


def _actions(function: Any) -> dict[Any, _Action]:
    """By variable of the old function."""
    bound = {b.var: b.value for b in bindings(function)}
    counts = uses(function)
    actions: dict[Any, _Action] = {}
    offsets: dict[Any, int] = {}
    for variable, value in bound.items():
        if relax_ops.name_of(value) == "quantize_activation" and counts[value.args[0]] == 1:
            offset = _fuse(bound, value.args[0], _format(value), actions)
            if offset is not None:
                actions[variable] = lambda new: new.args[0]  # the activation is the fused call's tuple by now
                offsets[variable] = offset
        elif isinstance(value, relax.TupleGetItem) and offsets.get(value.tuple_value):
            actions[variable] = _item(value.index + offsets[value.tuple_value])
    return actions


def _format(quantize: Any) -> dict[str, int]:
    """The attributes that say how an activation is quantized."""
    return {name: int(quantize.attrs[name]) for name in ("group", "terms")}


def _item(index: int) -> _Action:
    return lambda new: relax.TupleGetItem(new.tuple_value, index)


def _fuse(bound: dict[Any, Any], activation: Any, quantized: dict[str, int], actions: dict[Any, _Action]) -> int | None:
    """Plan the fusion with whatever computes ``activation``.

    Returns:
        Where the quantized results begin in the fused call's results; None if there is nothing to fuse with.
    """
    value = bound.get(activation)
    if relax_ops.name_of(value) == "glu":
        kind = str(value.attrs["activation"])  # type: ignore[union-attr]
        actions[activation] = lambda new: relax_ops.call("glu_quantized", new.args, activation=kind, **quantized)
        return 0
    if relax_ops.name_of(value) == "rotate":
        rotation = {str(name): int(number) for name, number in value.attrs.items()}  # type: ignore[union-attr]
        actions[activation] = lambda new: relax_ops.call("rotate_quantized", new.args, **rotation, **quantized)
        return 0
    if operator_name(value) in _NORMS and len(activation.ty.shape.values) == 2:
        kind, epsilon = _NORMS[operator_name(value)], float(value.attrs.epsilon)  # type: ignore[union-attr]
        actions[activation] = lambda new: relax_ops.call(
            "norm_quantized", new.args, kind=kind, epsilon=epsilon, **quantized
        )
        return 0
    if isinstance(value, relax.TupleGetItem) and value.index == 1:
        pair = value.tuple_value
        norm = bound.get(pair)
        if relax_ops.name_of(norm) == "add_rms_norm":
            epsilon = float(norm.attrs["epsilon"])  # type: ignore[union-attr]
            actions[pair] = lambda new: relax_ops.call("add_norm_quantized", new.args, epsilon=epsilon, **quantized)
            actions[activation] = lambda new: new.tuple_value
            return 1
    return None
