"""What a structural value means, and how the graph then says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import BITWRIGHT_DOMAIN, Dims
from bitwright.frontend.lift.survey import Survey
from bitwright.frontend.mask import Mask


class Meaning(Protocol):
    """Replaces input ``index`` of ``node``; ``positions`` is the graph's input ``position_ids``."""

    def install(self, survey: Survey, node: ir.Node, index: int, positions: ir.Value) -> None: ...


@dataclass(frozen=True)
class Constant:
    """The same at all lengths and positions."""

    content: np.ndarray

    def install(self, survey: Survey, node: ir.Node, index: int, positions: ir.Value) -> None:
        value = node.inputs[index]
        assert value is not None
        replacement = survey.built(value)
        if replacement is None:
            replacement = survey.remember(value, survey.constant(self.content, weight_name(value)))
        node.replace_input_with(index, replacement)


@dataclass(frozen=True)
class Rows:
    """Row i is row p+i of ``table`` [context, K], shaped as ``shape`` with its one ``"n"``."""

    table: np.ndarray
    shape: Dims

    def install(self, survey: Survey, node: ir.Node, index: int, positions: ir.Value) -> None:
        value = node.inputs[index]
        assert value is not None
        replacement = survey.built(value)
        if replacement is None:
            # It depends on nothing but the positions, so it may stand first, above all its readers.
            first, editor = survey.model.graph[0], survey.editor
            width = self.table.shape[1]
            table = survey.constant(self.table, weight_name(value))
            replacement = editor.op(first, "Gather", [table, positions], (1, "n", width), axis=0)
            if self.shape != (1, "n", width):
                replacement = editor.reshape(first, replacement, self.shape)
            survey.remember(value, replacement)
        node.replace_input_with(index, replacement)


@dataclass(frozen=True)
class Visibility:
    """An attention mask."""

    mask: Mask

    def install(self, survey: Survey, node: ir.Node, index: int, positions: ir.Value) -> None:
        value = node.inputs[index]
        assert value is not None
        replacement = survey.built(value)
        if replacement is None:
            dtype = ir.DataType.FLOAT if self.mask.form == "additive" else ir.DataType.BOOL
            replacement = survey.editor.op(
                survey.model.graph[0],
                "Mask",
                [],
                (1, 1, "n", "n+p"),
                domain=BITWRIGHT_DOMAIN,
                dtype=dtype,
                form=self.mask.form,
                causal=int(self.mask.causal),
                window=self.mask.window,
            )
            survey.remember(value, replacement)
        node.replace_input_with(index, replacement)


@dataclass(frozen=True)
class Operand:
    """Integers that an op on shapes reads: a shape, bounds of a slice."""

    numbers: tuple[int, ...]

    def install(self, survey: Survey, node: ir.Node, index: int, positions: ir.Value) -> None:
        node.resize_inputs(max(index + 1, len(node.inputs)))
        node.replace_input_with(index, survey.constant(np.array(self.numbers, np.int64), "operand"))
        node.attributes.pop("allowzero", None)


@dataclass(frozen=True)
class Nothing:
    """The node does nothing: its readers read its first input."""

    def install(self, survey: Survey, node: ir.Node, index: int, positions: ir.Value) -> None:
        source = node.inputs[0]
        assert source is not None
        survey.editor.replace(node.outputs[0], source)


def weight_name(value: ir.Value) -> str:
    """Name of the one weight that ``value`` is computed from, so that a derived constant keeps it; else its own."""
    weights: set[str] = set()
    seen: set[ir.Value] = set()
    queue = [value]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        tensor = current.const_value
        if tensor is not None and tensor.size > 1 and tensor.dtype is ir.DataType.FLOAT:
            weights.add(str(current.name))
        node = current.producer()
        if node is not None:
            queue.extend(v for v in node.inputs if v is not None)
    return weights.pop() if len(weights) == 1 else str(value.name)
