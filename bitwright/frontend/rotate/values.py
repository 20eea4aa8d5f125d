"""Maps of the values of attentions, folded into the layers before and behind: weights change, nothing is added.

An attention's output is a weighted mean of its values, so with v' = v B per key/value head the output of every query
head of its group is y' = y B. The layer that makes the values takes B into its columns, the layers that read the
output take B^-1 into their rows. Any invertible B will do: it makes weights, activations and the V cache easier to
quantize, or harder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.errors import InternalError
from bitwright.frontend.graph import attribute, dims, integers, producer
from bitwright.frontend.neighbours import change, constant_shape, linear, readers
from bitwright.moments import RowMap

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ValuePlace:
    """An attention whose values can be mapped.

    Attributes:
        layer: number of the attention in the graph.
        makers: names of the weight [inputs, columns] and the bias [columns], if any, that make the values.
        first: the values' first column there: Q, K and V may come from one product.
        readers: names of the weights [q_heads * size, outputs] that alone read the output.
        kv_heads, group, size: key/value heads, query heads of each, elements of a head.
    """

    layer: int
    makers: tuple[str, ...]
    first: int
    readers: tuple[str, ...]
    kv_heads: int
    group: int
    size: int


def value_places(model: ir.Model) -> tuple[ValuePlace, ...]:
    """One for every attention of a canonical graph that has it, in the graph's order."""
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    found = (_place(layer, node) for layer, node in enumerate(attentions))
    return tuple(place for place in found if place is not None)


def map_values(model: ir.Model, place: ValuePlace, matrices: Doubles) -> dict[str, RowMap]:
    """Change the weights of ``model`` so that values become v @ matrices[head].

    Returns:
        What becomes of the attention's output, by the weight parameters that multiply it.

    Args:
        matrices: invertible, float64 [kv_heads, size, size].
    """
    expected = (place.kv_heads, place.size, place.size)
    if matrices.shape != expected:
        raise InternalError(f"matrices of shape {matrices.shape} for values of {expected}", where="map_values")
    weights, inverses = model.graph.initializers, np.linalg.inv(matrices)
    last = place.first + place.kv_heads * place.size

    def of_values(tensor: Doubles) -> Doubles:
        heads = tensor[..., place.first : last].reshape(-1, place.kv_heads, place.size)
        mapped = np.einsum("ihd,hde->ihe", heads, matrices)
        changed = tensor.copy()
        changed[..., place.first : last] = mapped.reshape(*tensor.shape[:-1], -1)
        return changed

    def of_rows(rows: Doubles) -> Doubles:
        heads = rows.reshape(-1, place.kv_heads, place.group, place.size)
        mapped: Doubles = np.einsum("nhgd,hde->nhge", heads, matrices).reshape(rows.shape)
        return mapped

    def of_readers(tensor: Doubles) -> Doubles:
        heads = tensor.reshape(place.kv_heads, place.group, place.size, -1)
        mapped: Doubles = np.einsum("hed,hgdo->hgeo", inverses, heads).reshape(tensor.shape)
        return mapped

    for name in place.makers:
        change(weights[name], of_values)
    for name in place.readers:
        change(weights[name], of_readers)
    return {f"{name}.T": of_rows for name in place.readers}


def _place(layer: int, node: ir.Node) -> ValuePlace | None:
    reading = readers(node.outputs[0])
    kv_heads = int(attribute(node, "kv_num_heads", 0))
    group = int(attribute(node, "q_num_heads", 0)) // kv_heads
    if not reading:
        return None
    size = constant_shape(reading[0])[0] // (group * kv_heads)
    made = _makers(node.inputs[2], kv_heads * size)
    if made is None:
        return None
    makers, first = made
    return ValuePlace(layer, makers, first, tuple(str(w.name) for w in reading), kv_heads, group, size)


def _makers(values: ir.Value | None, width: int) -> tuple[tuple[str, ...], int] | None:
    """Weight and bias that make ``values``, whole or as a part of their columns, and the first column."""
    if values is None:
        return None
    part = _columns(values)
    if part is None:
        makers = linear(values, width)
        return None if makers is None else (makers, 0)
    source, first, last = part
    others = [_columns(output) for use in source.uses() for output in use.node.outputs if output is not values]
    if len(values.uses()) != 1 or any(other is None or (other[1] < last and first < other[2]) for other in others):
        return None
    makers = linear(source, (dims(source) or (0,))[-1], uses=len(source.uses()))  # type: ignore[arg-type]  # a width
    return None if makers is None else (makers, first)


def _columns(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """What ``value`` is cut from along the last axis, and its first and end columns; None if it is not."""
    node = producer(value)
    if node is None or node.op_type not in ("Split", "Slice") or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    if node.op_type == "Slice":
        bounds = [integers(v) for v in node.inputs[1:3]]
        return None if None in bounds else (source, bounds[0][0], bounds[1][0])  # type: ignore[index]  # not None
    widths = [(dims(output) or (0,))[-1] for output in node.outputs]
    at = list(node.outputs).index(value)
    return source, sum(widths[:at]), sum(widths[: at + 1])  # type: ignore[arg-type]  # numbers: only tokens vary
