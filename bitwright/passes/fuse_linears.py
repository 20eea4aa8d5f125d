"""Join linear layers that always read the same activation into one matrix product.

In: annotated ``linear`` calls. Out: one ``linear`` over the stacked rows of the members' weights, and slices of its
result where the members were used. Its scheme lists the runs of all members: ``u4g32a8:160+u6g32a8:96``. Neighbours
with one scheme become one run, but each member keeps a codebook of its own.

"Always" covers every use in every entry point: the stacked matrix is stored once, and prefill computes the last layers
for one row only, so that two layers with one input in ``score`` may have different ones in ``prefill``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import bindings, functions, rewrite, with_event
from bitwright.program import Parameter, Program
from bitwright.runs import Run, joined_runs, parse_weights, scheme_of


@dataclass(frozen=True)
class FuseLinears:
    """See the module's description."""

    name: str = "fuse_linears"

    def __call__(self, program: Program) -> Program:
        groups = _groups(program)
        parameters = dict(program.parameters)
        for group in groups:
            _stack(parameters, group.weights)
            if group.biases:
                _stack(parameters, group.biases)
        place = {weight: (group, i) for group in groups for i, weight in enumerate(group.weights)}

        def visit(rewriter: Any, _variable: Any, value: Any) -> Any:
            if relax_ops.name_of(value) != "linear" or value.args[1].name not in place:
                return None
            group, index = place[value.args[1].name]
            key = ("fused", group, value.args[0])
            if key not in rewriter.memo:
                rewriter.memo[key] = _emit_fused(rewriter, value, group, parameters)
            start = sum(group.outputs[:index])
            end = start + group.outputs[index]
            return relax.op.strided_slice(rewriter.memo[key], axes=[1], begin=[start], end=[end])

        module = rewrite(program.module, visit) if groups else program.module
        return with_event(replace(program, module=module, parameters=parameters), self.name, groups=len(groups))


@dataclass(frozen=True)
class _Group:
    """Layers that become one: names of their weights, rows of each, and names of their biases (all have one, or none).

    The first member's site stands for all.
    """

    weights: tuple[str, ...]
    outputs: tuple[int, ...]
    biases: tuple[str, ...]
    runs: tuple[Run, ...]


def _joined(names: Sequence[str]) -> str:
    return "+".join(names)


def _groups(program: Program) -> list[_Group]:
    """Groups of at least two layers with the same inputs and presence of a bias, in graph order."""
    candidates = {site.weight for site in program.sites if site.group}
    calls: dict[str, list[Any]] = defaultdict(list)
    for _, function in functions(program.module):
        for binding in bindings(function):
            if relax_ops.name_of(binding.value) == "linear" and binding.value.args[1].name in candidates:
                calls[binding.value.args[1].name].append(binding.value)
    found: dict[Any, list[str]] = defaultdict(list)
    for weight, uses in calls.items():
        # A weight with several biases would need several stacked biases.
        if len({_bias(call) for call in uses}) == 1:
            inputs = frozenset(call.args[0] for call in uses)
            found[inputs, bool(_bias(uses[0]))].append(weight)
    return [_group(weights, calls) for weights in found.values() if len(weights) > 1]


def _group(weights: Sequence[str], calls: Mapping[str, Sequence[Any]]) -> _Group:
    firsts = [calls[weight][0] for weight in weights]
    outputs = tuple(int(call.args[1].ty.shape.values[0]) for call in firsts)
    biases = tuple(bias for call in firsts if (bias := _bias(call)))
    schemes = [parse_weights(str(call.attrs["scheme"])) for call in firsts]
    return _Group(tuple(weights), outputs, biases, joined_runs(list(zip(schemes, outputs, strict=True))))


def _bias(call: Any) -> str:
    """The name of a linear call's bias; empty if it has none."""
    return str(call.args[2].name) if len(call.args) > 2 else ""


def _stack(parameters: dict[str, Parameter], names: Sequence[str]) -> None:
    parts = [parameters[name] for name in names]
    rows = sum(p.shape[0] for p in parts)

    def load() -> np.ndarray[Any, Any]:
        return np.concatenate([p.load() for p in parts])

    shape = (rows, *parts[0].shape[1:])
    parameters[_joined(names)] = Parameter(_joined(names), shape, parts[0].dtype, load, tuple(names))


def _emit_fused(rewriter: Any, value: Any, group: _Group, parameters: Mapping[str, Parameter]) -> Any:
    entries = [parameters[_joined(names)] for names in (group.weights, group.biases) if names]
    variables = [rewriter.parameter(entry.name, entry.shape, entry.dtype) for entry in entries]
    attributes = {"site": str(value.attrs["site"]), "scheme": scheme_of(group.runs).name}
    return rewriter.emit(relax_ops.call("linear", [value.args[0], *variables], **attributes))
