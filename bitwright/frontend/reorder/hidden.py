"""Hidden units of feed-forward networks: what linear layers make, functions of single elements join, and others read.

With h = f(x A, x B) element by element, the columns of A and B and the rows of what reads h may be permuted together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.frontend.canonical import ELEMENTWISE
from bitwright.frontend.graph import producer
from bitwright.frontend.neighbours import change, constant_shape, linear, readers
from bitwright.moments import RowMap

Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hidden:
    """Attributes:
    makers: names of the tensors whose last axis is the units: weights [inputs, units] and biases [units].
    readers: names of weights [units, outputs].
    units: how many there are.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    units: int


def hidden_places(model: ir.Model) -> tuple[Hidden, ...]:
    """All of a canonical graph, in its order."""
    found = (_place(value) for node in model.graph for value in node.outputs)
    return tuple(place for place in found if place is not None)


def reorder(model: ir.Model, place: Hidden, order: Order) -> dict[str, RowMap]:
    """Let unit ``order[i]`` of ``place`` be unit ``i``; the weights of ``model`` change.

    Returns:
        What becomes of the units, by the weight parameters that multiply them.
    """

    def of_last_axis(tensor: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return tensor[..., order]

    weights = model.graph.initializers
    for name in place.makers:
        change(weights[name], of_last_axis)
    for name in place.readers:
        change(weights[name], lambda tensor: tensor[order])
    return {f"{name}.T": of_last_axis for name in place.readers}


def _place(value: ir.Value) -> Hidden | None:
    weights = readers(value) if _is_elementwise(value) else []
    if not weights:
        return None
    units = constant_shape(weights[0])[0]
    makers: list[str] = []
    inside: dict[ir.Value, None] = {}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current in inside:
            continue
        made = linear(current, units, uses=len(current.uses()))
        inside[current] = None
        if made is not None:
            makers.extend(made)
        elif _is_elementwise(current):
            node = producer(current)
            assert node is not None  # it is element-wise
            if any(
                constant_shape(v) not in ((), (1,)) for v in node.inputs if v is not None and v.const_value is not None
            ):
                return None
            waiting += [v for v in node.inputs if v is not None and v.const_value is None]
        else:
            return None
    nodes = {producer(v) for v in inside}
    if any(use.node not in nodes for v in inside if v is not value for use in v.uses()):
        return None
    return Hidden(tuple(makers), tuple(str(weight.name) for weight in weights), units)


def _is_elementwise(value: ir.Value) -> bool:
    node = producer(value)
    return node is not None and not node.domain and node.op_type in ELEMENTWISE
