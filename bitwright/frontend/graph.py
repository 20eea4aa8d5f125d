"""Reading and editing an ``onnx_ir`` graph: the few operations that every rewrite needs.

A *dimension* is an ``int`` or the name of one that varies: ``"n"`` (tokens of this call), ``"p"`` (tokens already in
the cache) or ``"n+p"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

BITWRIGHT_DOMAIN = "bitwright"
OPSET = 23
DECODED_LIMIT = 4096  # elements up to which an initializer counts as a small constant

Dims = tuple["int | str", ...]


def dims(value: ir.Value | None) -> Dims | None:
    """Dimensions of ``value``, or None where its rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The content of a small constant (an initializer of at most ``DECODED_LIMIT`` elements), else None."""
    if value is None or value.const_value is None or value.const_value.size > DECODED_LIMIT:
        return None
    return np.asarray(value.const_value.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The number held by a constant of one element, else None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def integers(value: ir.Value | None) -> list[int] | None:
    """The elements of a small integer constant, else None."""
    array = constant(value)
    return None if array is None or array.dtype.kind not in "iu" else [int(x) for x in array.reshape(-1)]


def is_op(value: ir.Value | None, *op_types: str, domain: str = "") -> bool:
    """Whether ``value`` is produced by one of ``op_types`` of ``domain``."""
    node = producer(value)
    return node is not None and node.domain == domain and node.op_type in op_types


def producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def token_ids(indices: ir.Value | None) -> ir.Value | None:
    """What a look-up reads: its indices, or, if these are rows that another look-up finds, that one's indices."""
    node = producer(indices)
    return node.inputs[1] if node is not None and node.op_type == "Gather" else indices


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Value of an attribute, or ``default`` where the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def describe(node: ir.Node) -> str:
    """How an error names a node: its name, op and domain."""
    return f"node '{node.name}' ({node.domain or 'ai.onnx'}::{node.op_type})"


class Editor:
    """Adds nodes and initializers to one graph; new values get unique names and known shapes."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self._count = 0

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}.{self._count}"

    def node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shapes: Sequence[Dims | None],
        *,
        domain: str = "",
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> list[ir.Value]:
        """Insert a node before ``before``; one output per entry of ``shapes``."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(shapes), name=self.fresh(op_type))
        for value, shape in zip(node.outputs, shapes, strict=True):
            value.name = self.fresh(op_type.lower())
            value.dtype = dtype
            value.shape = None if shape is None else ir.Shape(shape)
        self.graph.insert_before(before, node)
        return list(node.outputs)

    def op(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], shape: Dims | None, **kw: Any
    ) -> ir.Value:
        """Insert a node of one output and return that."""
        return self.node(before, op_type, inputs, [shape], **kw)[0]

    def initializer(self, array: np.ndarray, hint: str = "const") -> ir.Value:
        name = hint if hint not in self.graph.initializers else self.fresh(hint)
        while name in self.graph.initializers:
            name = self.fresh(hint)
        return self.tensor(ir.tensor(np.ascontiguousarray(array), name=name), name)

    def tensor(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Register ``tensor`` (possibly lazy) as the initializer ``name``."""
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(tensor.shape)), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def reshape(self, before: ir.Node, value: ir.Value, shape: Dims) -> ir.Value:
        """Reshape to ``shape``, whose one varying dimension (if any) becomes -1."""
        target = [d if isinstance(d, int) else -1 for d in shape]
        return self.op(
            before, "Reshape", [value, self.initializer(np.array(target, np.int64), "shape")], shape, dtype=value.dtype
        )

    def transpose(self, before: ir.Node, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        shape = dims(value)
        new = None if shape is None else tuple(shape[i] for i in perm)
        return self.op(before, "Transpose", [value], new, perm=list(perm), dtype=value.dtype)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of ``old`` (and the graph's outputs) read ``new``."""
        old.replace_all_uses_with(new, replace_graph_outputs=True)


def sweep(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads."""
    graph = model.graph
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(v in outputs or v.uses() for v in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
