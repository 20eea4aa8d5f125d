"""What converters work with: the values of one function under construction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from bitwright.errors import UnsupportedError
from bitwright.program import Parameter

# Constants up to this many elements are embedded in the IR; larger ones become parameters.
EMBEDDED_ELEMENTS = 16


@dataclass(frozen=True)
class Initializer:
    """A constant of the ONNX graph that no operator has asked for as a Relax value yet.

    Attributes:
        transposed: the (two-dimensional) constant is read with its axes exchanged.
        rows: only the first ``rows`` rows are read; None for all.
    """

    value: ir.Value
    transposed: bool = False
    rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(int(d) for d in self.value.const_value.shape)
        shape = shape[::-1] if self.transposed else shape
        return shape if self.rows is None else (min(shape[0], self.rows), *shape[1:])

    def numpy(self) -> np.ndarray[Any, Any]:
        array = np.asarray(self.value.const_value.numpy())
        array = array.T if self.transposed else array
        return np.ascontiguousarray(array if self.rows is None else array[: self.rows])


@dataclass(frozen=True)
class Ranks:
    """Token ids (a Relax value) that stand for rows by way of a constant table int32 [tokens]."""

    ids: Any
    table: Initializer


@dataclass
class Context:
    """State of the conversion of one function.

    Attributes:
        builder: Relax block builder, inside a data-flow block.
        rows: number of tokens the node at work sees: a symbolic variable, or 1.
        capacity: positions that can occur.
        position: Relax variable of shape type with the start position; None in encoders.
        caches: (k_cache, v_cache) variables per cached attention.
        parameters: shared by all functions of the model; filled on demand.
        values: Relax value (or :class:`Initializer`, or :class:`Ranks`) of each ONNX value, by identity.
        last_rows: the last row of values that were cut for the tail of a prefill.
        variables: this function's Relax variable for each parameter used.
    """

    builder: Any
    rows: Any
    capacity: int
    position: Any
    caches: list[tuple[Any, Any]]
    parameters: dict[str, Parameter]
    variables: dict[str, Any] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    last_rows: dict[int, Any] = field(default_factory=dict)
    cached_attentions: int = 0

    def emit(self, expr: Any) -> Any:
        return self.builder.emit(expr)

    def parameter(self, initializer: Initializer, *, transpose: bool = False, rows: int | None = None) -> Any:
        """The Relax variable that stands for a constant tensor, optionally transposed (matrices) or its first rows."""
        source = Initializer(initializer.value, initializer.transposed != transpose, rows)
        name = str(source.value.name) + (".T" if source.transposed else "")
        if name not in self.parameters:
            dtype = str(source.value.const_value.dtype.numpy())
            self.parameters[name] = Parameter(name, source.shape, dtype, source.numpy)
        if name not in self.variables:
            entry = self.parameters[name]
            self.variables[name] = relax.Var(name, relax.TensorType(list(entry.shape), entry.dtype))
        return self.variables[name]

    def raw(self, value: ir.Value | None) -> Any:
        """The value as stored: an :class:`Initializer`, :class:`Ranks`, a Relax expression, or None for an absent
        input."""
        if value is None:
            return None
        if id(value) not in self.values and value.const_value is not None:
            self.values[id(value)] = Initializer(value)
        return self.values[id(value)]

    def expression(self, value: ir.Value | None) -> Any:
        """The value as a Relax expression without the batch axis."""
        raw = self.raw(value)
        if not isinstance(raw, Initializer):
            return raw
        shape = raw.shape
        if int(np.prod(shape)) <= EMBEDDED_ELEMENTS:
            return relax.const(_without_batch(raw.numpy()))
        if len(shape) <= 2:
            return self.parameter(raw)
        variable = self.parameter(raw)
        return self.emit(relax.op.reshape(variable, list(_strip(shape))))


def _strip(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) >= 3 and shape[0] == 1 else shape


def _without_batch(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.reshape(_strip(array.shape))


def constant(context: Context, value: ir.Value | None, node: ir.Node) -> list[int] | None:
    """A constant integer tensor as a list; None if the input is absent."""
    raw = context.raw(value)
    if raw is None:
        return None
    if not isinstance(raw, Initializer):
        raise unsupported(node, f"input '{value.name if value else ''}' must be a constant")
    return [int(x) for x in raw.numpy().reshape(-1)]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The attribute's Python value, or ``default``."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def axis_without_batch(node: ir.Node, axis: int) -> int:
    """The axis after the leading batch axis is dropped; negative axes are kept."""
    if axis == 0:
        raise unsupported(node, "the operator works along the batch axis")
    return axis if axis < 0 else axis - 1


def unsupported(node: ir.Node, what: str) -> UnsupportedError:
    domain = node.domain or "ai.onnx"
    return UnsupportedError(
        f"cannot convert {node.op_type}: {what}",
        where=f"node '{node.name}', operator {node.op_type}, domain {domain}",
        limit="the canonical form that import accepts",
        remedy="report the model's architecture; other operators of the same meaning may be accepted",
    )
