"""The canonical inputs and outputs: their names, order and meaning."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.graph import attribute, dims
from bitwright.frontend.model import CacheShape
from bitwright.frontend.roles import Role, Roles

Kind = Literal["decoder", "encoder"]


def attentions(model: ir.Model) -> list[ir.Node]:
    """The attention nodes, in graph order."""
    return [node for node in model.graph if node.op_type == "Attention"]


def settle(model: ir.Model, roles: Roles) -> tuple[Kind, tuple[CacheShape, ...]]:
    """Name and order the graph's inputs and outputs in place.

    Returns: what kind of model it is, and the cache of each attention (none for an encoder).

    Raises:
        UnsupportedError: for a cached tensor that no attention reads, or where the output is not one tensor over
            tokens.
    """
    graph = model.graph
    nodes = attentions(model)
    cached = [node for node in nodes if len(node.inputs) > 5 and node.inputs[4] is not None]
    kind: Kind = "decoder" if roles.past else "encoder"
    if kind == "decoder" and len(cached) != len(nodes):
        raise UnsupportedError(
            "some attentions have a cache and some do not", where="attention nodes", limit="all or none"
        )
    presents = [v for node in cached for v in node.outputs[1:3]]
    result = _result(model, presents, kind)
    inputs = [_required(roles, Role.IDS)]
    inputs += [v for v in graph.inputs if v.name == Role.POSITIONS.value and v.uses()]
    inputs += [v for v in [roles.get(Role.TOKEN_TYPES)] if v is not None and v.uses()]
    if kind == "decoder" and len(inputs) < 2:
        # Every decoder is called with positions, even one that has no use for them.
        inputs.append(next((v for v in graph.inputs if v.name == Role.POSITIONS.value), _positions()))
    past = [v for node in cached for v in node.inputs[4:6] if v is not None]
    stray = [v.name for v in roles.past if v not in past]
    if stray or len(set(past)) != len(past):
        raise UnsupportedError(
            f"cached tensors {stray or [v.name for v in past]} are not each read by one attention",
            where="graph inputs",
            limit="one key and one value tensor per attention",
        )
    graph.inputs[:] = [*inputs, *past]
    graph.outputs[:] = [result, *presents]
    for index, node in enumerate(cached):
        for name, value in zip(("key", "value"), node.inputs[4:6], strict=True):
            assert value is not None
            value.name = f"past.{index}.{name}"
        for name, value in zip(("key", "value"), node.outputs[1:3], strict=True):
            value.name = f"present.{index}.{name}"
    result.name = "logits" if kind == "decoder" else "hidden"
    return kind, tuple(_cache_shape(node) for node in cached)


def _positions() -> ir.Value:
    return ir.Value(name=Role.POSITIONS.value, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "n"]))


def _required(roles: Roles, role: Role) -> ir.Value:
    value = roles.get(role)
    assert value is not None  # Roles checked it
    return value


def _result(model: ir.Model, presents: list[ir.Value], kind: Kind) -> ir.Value:
    """The logits or hidden states: the first output over tokens that is no cached tensor."""
    others = [v for v in model.graph.outputs if v not in presents]
    for value in others:
        shape = dims(value)
        if (
            shape is not None
            and len(shape) == 3
            and shape[:2] == (1, "n")
            and isinstance(shape[2], int)
            and value.producer() is not None
        ):
            return value
    raise UnsupportedError(
        f"the {kind} returns no tensor over all tokens",
        where=f"outputs {[(v.name, dims(v)) for v in others]}",
        limit="logits or hidden states [batch, tokens, width]",
        remedy="export the model so that it returns logits of all positions and the cache",
    )


def _cache_shape(node: ir.Node) -> CacheShape:
    key, value = dims(node.inputs[4]), dims(node.inputs[5])
    assert key is not None and value is not None
    return CacheShape(int(attribute(node, "kv_num_heads")), int(key[3]), int(value[3]))
