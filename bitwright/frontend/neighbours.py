"""What stands next to a value of a canonical graph, and how constants change: for edits that keep the function.

Only tensors that nothing else reads may be changed; the functions here find those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.frontend.graph import is_op, producer

Doubles = npt.NDArray[np.float64]


def constant_shape(value: ir.Value | None) -> tuple[int, ...]:
    """Of a constant; empty for anything else."""
    return () if value is None or value.const_value is None else tuple(int(d) for d in value.const_value.shape)


def readers(value: ir.Value) -> list[ir.Value]:
    """The weights [inputs, outputs] that multiply ``value``; none if it has any other reader, or a weight has."""
    weights = []
    for use in value.uses():
        weight = use.node.inputs[1] if use.node.op_type == "MatMul" and use.idx == 0 else None
        if weight is None or len(constant_shape(weight)) != 2 or len(weight.uses()) > 1:
            return []
        weights.append(weight)
    return [] if value.is_graph_output() else weights


def own(values: list[ir.Value | None]) -> tuple[str, ...] | None:
    """Names of constants, if nothing else reads them."""
    found = [value for value in values if value is not None]
    alone = all(value.const_value is not None and len(value.uses()) == 1 for value in found)
    return tuple(str(value.name) for value in found) if found and alone else None


def linear(value: ir.Value | None, channels: int, uses: int = 1) -> tuple[str, ...] | None:
    """The weight and bias that make ``value`` [1, n, channels], if nothing but the ``uses`` at hand reads it."""
    node = producer(value)
    if value is None or node is None or len(value.uses()) != uses or value.is_graph_output():
        return None
    if node.op_type == "MatMul" and not node.domain:
        return own([node.inputs[1]]) if constant_shape(node.inputs[1])[1:] == (channels,) else None
    if node.op_type != "Add" or node.domain:
        return None
    for product, bias in (tuple(node.inputs), tuple(reversed(node.inputs))):
        weight, alone = linear(product, channels) if is_op(product, "MatMul") else None, own([bias])
        if weight and alone and constant_shape(bias) == (channels,):
            return (*weight, *alone)
    return None


def change(value: ir.Value, make: Callable[[Doubles], npt.NDArray[Any]]) -> None:
    """Let an initializer hold what ``make`` makes of its numbers, computed in double precision whenever it is read."""
    tensor = value.const_value
    assert tensor is not None  # an initializer of a canonical graph
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(make(np.asarray(tensor.numpy(), np.float64)), dtype=np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([int(d) for d in tensor.shape]),
        name=value.name,
    )
