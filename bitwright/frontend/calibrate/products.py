"""Find the products of an activation with a constant matrix, named as the Relax import names the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Product:
    """A linear layer of the graph.

    Attributes:
        weight: name of the parameter in the IR, [outputs, inputs]: the initializer's, with ``.T`` if that is
            [inputs, outputs] in the graph.
        activation: name of the graph value that it multiplies.
        inputs: width of that value.
        output: name of the graph value that it computes.
    """

    weight: str
    activation: str
    inputs: int
    output: str


def products(model: ir.Model) -> tuple[Product, ...]:
    """Every MatMul of the graph with a constant matrix on its right, in the graph's order."""
    return tuple(_products(model))


def _products(model: ir.Model) -> Iterator[Product]:
    for node in model.graph:
        if node.op_type != "MatMul" or node.domain or node.inputs[0] is None or node.inputs[1] is None:
            continue
        source, transposed = _source(node.inputs[1])
        if source.const_value is None or len(source.const_value.shape) != 2 or node.inputs[0].name is None:
            continue
        inputs = int(source.const_value.shape[1 if transposed else 0])
        yield Product(
            f"{source.name}{'' if transposed else '.T'}", node.inputs[0].name, inputs, str(node.outputs[0].name)
        )


def _source(value: ir.Value) -> tuple[ir.Value, bool]:
    """The initializer behind any number of transposes, and whether their number is odd."""
    transposed = False
    while (node := value.producer()) is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        value, transposed = node.inputs[0], not transposed
    return value, transposed
