"""Turn an ONNX graph into a list of steps: which function on which values, and which values die after it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, UnsupportedError
from bitwright.frontend.interpreter.convert import attribute_value
from bitwright.frontend.interpreter.registry import OpKey, find, resolve

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from bitwright.frontend.interpreter.registry import OpFunction


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes:
        node: the node's name, for messages.
        key: its operator.
        function: what computes it.
        inputs: value names; None where an optional input is absent.
        outputs: value names; None where an output is not wanted.
        attributes: the function's keyword arguments.
        dying: values nobody reads after this step.
    """

    node: str
    key: OpKey
    function: OpFunction
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    attributes: Mapping[str, Any]
    dying: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return (
            f"node '{self.node}', op {self.key.op}, domain {self.key.domain or 'ai.onnx'}, version {self.key.version}"
        )


def steps_of(graph: ir.Model, dtype: torch.dtype, device: torch.device) -> tuple[Step, ...]:
    """Steps of all nodes in the graph's order, no value dying yet. UnsupportedError names the first unknown node."""
    imports = graph.opset_imports
    return tuple(_step(node, imports, dtype, device) for node in graph.graph)


def _step(node: ir.Node, imports: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Step:
    name = node.name or ", ".join(value.name or "" for value in node.outputs)
    opset = imports.get(node.domain, imports.get("ai.onnx" if node.domain == "" else node.domain))
    where = f"node '{name}', op {node.op_type}, domain {node.domain or 'ai.onnx'}"
    if opset is None:
        raise UnsupportedError(
            f"the graph uses {node.op_type} of a domain it does not import",
            where=where,
            remedy="import the model with bitwright, which writes canonical graphs",
        )
    key = resolve(node.domain, node.op_type, opset)
    function = find(key)
    if function is None:
        raise UnsupportedError(
            f"the torch interpreter does not know {key}",
            where=where,
            limit="it runs canonical ONNX: opset 23 of ai.onnx and the bitwright domain",
            remedy="normalise the graph first, or register the op in bitwright/frontend/interpreter/ops",
        )
    attributes = {a.name: attribute_value(a, dtype, device, where) for a in node.attributes.values()}
    parameters = inspect.signature(function).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    unknown = sorted(set(attributes) - known)
    if unknown:
        raise UnsupportedError(
            f"the torch interpreter does not know attribute '{unknown[0]}' of {key}",
            where=where,
            limit=f"known attributes: {', '.join(sorted(known)) or 'none'}",
            remedy="normalise the graph first",
        )
    inputs = tuple(value.name if value is not None else None for value in node.inputs)
    outputs = tuple(value.name or None for value in node.outputs)
    return Step(name, key, function, inputs, outputs, attributes)


def require_producers(steps: Iterable[Step], available: Collection[str], outputs: Iterable[str]) -> None:
    """Raise InputError if a step or ``outputs`` reads a value that nothing before it computes."""
    known = set(available)
    for step in steps:
        for name in step.inputs:
            if name and name not in known:
                raise InputError(
                    f"value '{name}' is read before anything computes it",
                    where=step.where,
                    limit="nodes are in topological order; every value has a producer",
                    remedy="export the model again",
                )
        known.update(name for name in step.outputs if name)
    for name in outputs:
        if name not in known:
            raise InputError(f"nothing computes graph output '{name}'", remedy="export the model again")


def pruned(
    steps: Iterable[Step], wanted: frozenset[str], kept: frozenset[str], given: frozenset[str] = frozenset()
) -> tuple[Step, ...]:
    """The steps that ``wanted`` depends on, each with the values that die after it; ``kept`` (weights) never die.

    What only values that are ``given`` depend on is left out.
    """
    needed, result = set(wanted), []
    for step in reversed(list(steps)):
        if needed.isdisjoint(name for name in step.outputs if name and name not in given):
            continue
        read = {name for name in step.inputs if name}
        written = {name for name in step.outputs if name}
        result.append(replace(step, dying=tuple(sorted((read | written) - needed - kept))))
        needed |= read
    return tuple(reversed(result))
