"""Join linear layers that read the same activation and have the same scheme into one matrix product.

In: annotated ``linear`` calls. Out: one ``linear`` over the stacked rows of the members' weights, and slices of its
result
where the members were used. Members with different schemes stay apart (their quantized input is still shared).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import bindings, functions, rewrite, with_event
from bitwright.program import Parameter, Program


@dataclass(frozen=True)
class FuseLinears:
    """See the module's description."""

    name: str = "fuse_linears"

    def __call__(self, program: Program) -> Program:
        groups = _groups(program)
        parameters = dict(program.parameters)
        for members in groups:
            _stack(parameters, [m.weight for m in members], "weight")
            if members[0].bias:
                _stack(parameters, [m.bias for m in members], "bias")
        first = {members[0].weight: members for members in groups}
        member_of = {m.weight: (members, i) for members in groups for i, m in enumerate(members)}

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            if relax_ops.name_of(value) != "linear" or value.args[1].name not in member_of:
                return None
            members, index = member_of[value.args[1].name]
            key = ("fused", _joined([m.weight for m in members]))
            if value.args[1].name in first:
                rewriter.memo[key] = _emit_fused(rewriter, value, members, parameters)
            start = sum(m.outputs for m in members[:index])
            fused = rewriter.memo[key]
            return relax.op.strided_slice(fused, axes=[1], begin=[start], end=[start + members[index].outputs])

        module = rewrite(program.module, visit) if groups else program.module
        return with_event(replace(program, module=module, parameters=parameters), self.name, groups=len(groups))


@dataclass(frozen=True)
class _Member:
    weight: str
    bias: str
    outputs: int


def _joined(names: list[str]) -> str:
    return "+".join(names)


def _groups(program: Program) -> list[list[_Member]]:
    """Groups of at least two members with the same input, scheme and presence of a bias, in graph order."""
    group_of = {site.weight: site.group for site in program.sites if site.group}
    found: dict[tuple[str, str, bool], list[_Member]] = defaultdict(list)
    _, function = next(functions(program.module))
    for binding in bindings(function):
        call = binding.value
        if relax_ops.name_of(call) != "linear" or call.args[1].name not in group_of:
            continue
        weight = call.args[1].name
        bias = call.args[2].name if len(call.args) > 2 else ""
        outputs = int(call.args[1].ty.shape.values[0])
        found[(group_of[weight], str(call.attrs["scheme"]), bool(bias))].append(_Member(weight, bias, outputs))
    return [members for members in found.values() if len(members) > 1]


def _stack(parameters: dict[str, Parameter], names: list[str], what: str) -> None:
    parts = [parameters[name] for name in names]
    rows = sum(p.shape[0] for p in parts)

    def load() -> np.ndarray[Any, Any]:
        return np.concatenate([p.load() for p in parts])

    shape = (rows, *parts[0].shape[1:])
    parameters[_joined(names)] = Parameter(_joined(names), shape, parts[0].dtype, load)


def _emit_fused(rewriter: Any, value: Any, members: list[_Member], parameters: dict[str, Parameter]) -> Any:
    arguments = [value.args[0]]
    for names in ([m.weight for m in members], [m.bias for m in members] if members[0].bias else []):
        if names:
            entry = parameters[_joined(names)]
            arguments.append(rewriter.parameter(entry.name, entry.shape, entry.dtype))
    attributes = {"site": str(value.attrs["site"]), "scheme": str(value.attrs["scheme"])}
    return rewriter.emit(relax_ops.call("linear", arguments, **attributes))
