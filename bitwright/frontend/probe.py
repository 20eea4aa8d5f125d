"""Semantic probing: evaluate the part of a graph that depends on lengths and positions only.

Attention masks, rotary tables and shape arithmetic depend on the number of new tokens n, the number of cached tokens
p, on ``position_ids`` and on ``attention_mask``, never on what the tokens are. Such values are called *structural*.
Instead of recognising how each exporter spells them, a ``Probe`` computes them for one (n, p) with every position
visible, and the caller decides from the numbers what they mean.

Values are computed with ONNX's reference evaluator, shapes with ONNX's shape inference, node by node and only where
asked for: the shape of an activation is known without computing the activation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.errors import InputError, UnsupportedError
from bitwright.frontend.graph import BITWRIGHT_DOMAIN, attribute, describe, dims
from bitwright.frontend.roles import Role, Roles

ELEMENT_LIMIT = 1 << 27  # of one probed value; 128 Mi elements

_SHAPE_OF = {"Shape", "Size"}
_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
# Inputs whose values decide the shape of the output.
_SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Unsqueeze": (1,), "Squeeze": (1,), "Split": (1,), "Pad": (1, 3),
    "Slice": (1, 2, 3, 4), "Range": (0, 1, 2), "ConstantOfShape": (0,), "OneHot": (1,), "TopK": (1,),
    "SplitToSequence": (1,), "SequenceAt": (1,), "ReduceMean": (1,), "ReduceSum": (1,), "ReduceMax": (1,),
    "ReduceMin": (1,), "ReduceProd": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,),
}  # fmt: skip


@dataclass(frozen=True)
class Dependence:
    """Which values of a graph depend on token content (``data``) and which on constants alone (``static``)."""

    data: frozenset[ir.Value]
    static: frozenset[ir.Value]

    @classmethod
    def of(cls, model: ir.Model, roles: Roles) -> Dependence:
        data = {v for v, role in roles.items() if role not in (Role.MASK, Role.POSITIONS)}
        static: set[ir.Value] = set(model.graph.initializers.values())
        for node in model.graph:
            inputs = [v for v in node.inputs if v is not None]
            if node.op_type in _CONTROL_FLOW or node.op_type in _RANDOM:
                data.update(node.outputs)
            elif node.op_type in _SHAPE_OF:
                continue
            elif any(v in data for v in inputs):
                data.update(node.outputs)
            elif all(v in static for v in inputs):
                static.update(node.outputs)
        return cls(frozenset(data), frozenset(static))


@dataclass
class Probe:
    """One evaluation of the structural part at ``n`` new tokens after ``p`` cached ones.

    Args:
        model: the graph; it must not be edited while the probe lives.
        roles: what each graph input is.
        n, p: token counts, n >= 1.
    """

    model: ir.Model
    roles: Roles
    n: int
    p: int
    _values: dict[ir.Value, Any] = field(default_factory=dict)
    _types: dict[ir.Value, Any] = field(default_factory=dict)
    _order: dict[ir.Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order = {node: index for index, node in enumerate(self.model.graph)}
        for value, role in self.roles.items():
            shape = self.roles.concrete_shape(value, self.n, self.p)
            self._types[value] = _tensor_type(value.dtype or ir.DataType.FLOAT, shape)
            if role is Role.MASK:
                self._values[value] = np.ones(shape, (value.dtype or ir.DataType.INT64).numpy())
            elif role is Role.POSITIONS:
                self._values[value] = np.arange(self.p, self.p + self.n, dtype=np.int64)[None]

    def values(self, wanted: Iterable[ir.Value]) -> list[np.ndarray]:
        """Contents of structural values, in order."""
        targets = list(wanted)
        self._evaluate(set(targets), set())
        return [self._content(v) for v in targets]

    def value(self, wanted: ir.Value) -> np.ndarray:
        return self.values([wanted])[0]

    def shapes(self, wanted: Iterable[ir.Value]) -> list[tuple[int, ...] | None]:
        """Shapes of any values, in order; None for a sequence."""
        targets = list(wanted)
        self._evaluate(set(), set(targets))
        return [_shape_of(self._types[v]) for v in targets]

    def shape(self, wanted: ir.Value) -> tuple[int, ...]:
        found = self.shapes([wanted])[0]
        if found is None:
            raise UnsupportedError("a sequence of tensors has no shape", where=_where(wanted))
        return found

    def dtype(self, known: ir.Value) -> ir.DataType:
        """Element type of a value whose shape was asked for."""
        return ir.DataType(self._types[known].tensor_type.elem_type)

    def _evaluate(self, want_value: set[ir.Value], want_shape: set[ir.Value]) -> None:
        """Compute what is wanted and everything above it that is not known yet, in graph order."""
        plan: dict[ir.Node, bool] = {}  # node -> whether its content is needed, not only its shape
        queue = [(v, True) for v in want_value] + [(v, False) for v in want_shape]
        while queue:
            value, by_value = queue.pop()
            self._seed(value)
            node = value.producer()
            if (
                node is None
                or value in (self._values if by_value else self._types)
                or (plan.get(node, False) >= by_value and node in plan)
            ):
                continue
            plan[node] = by_value
            operands = _SHAPE_OPERANDS.get(node.op_type, ())
            for index, source in enumerate(node.inputs):
                if source is not None:
                    content = (by_value and node.op_type not in _SHAPE_OF) or index in operands
                    queue.append((source, content))
        for node in sorted(plan, key=self._order.__getitem__):
            self._infer(node)
            if plan[node]:
                self._compute(node)

    def _seed(self, value: ir.Value) -> None:
        """Enter a constant; its content is decoded only where an op reads it."""
        if value in self._types or value.const_value is None:
            return
        tensor = value.const_value
        self._types[value] = _tensor_type(tensor.dtype, tuple(int(d) for d in tensor.shape))
        self._values[value] = tensor

    def _content(self, value: ir.Value) -> np.ndarray:
        if value not in self._values:
            raise _by_content(value)
        held = self._values[value]
        return np.asarray(held) if isinstance(held, np.ndarray) else np.asarray(held.numpy())

    def _infer(self, node: ir.Node) -> None:
        import onnx

        if all(v in self._types for v in node.outputs):
            return
        if node.domain == BITWRIGHT_DOMAIN:
            for value in node.outputs:
                self._types[value] = _tensor_type(value.dtype or ir.DataType.FLOAT, self._sized(value))
            return
        missing = [v for v in node.inputs if v is not None and v not in self._types]
        if missing:
            raise _by_content(missing[0])
        version = self.model.opset_imports.get(node.domain, 1)
        operands = _SHAPE_OPERANDS.get(node.op_type, ())
        data = {
            v.name: onnx.numpy_helper.from_array(self._content(v))
            for i, v in enumerate(node.inputs)
            if v is not None and i in operands
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            types = onnx.shape_inference.infer_node_outputs(
                schema,
                ir.serde.serialize_node(node),
                {v.name: self._types[v] for v in node.inputs if v is not None},
                data,
                opset_imports=[onnx.helper.make_opsetid(node.domain, version)],
            )
        except onnx.defs.SchemaError as error:
            raise unknown_op(node) from error
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                "the shapes of a node's inputs do not fit each other",
                where=describe(node),
                limit=str(error).strip().splitlines()[-1] if str(error).strip() else None,
                remedy="export the model again",
            ) from error
        for value in node.outputs:
            if value.name not in types:
                continue
            self._types[value] = types[value.name]
            size = int(np.prod(_shape_of(types[value.name]) or (1,), dtype=np.float64))
            if size > ELEMENT_LIMIT and value in self._values:
                raise _too_large(node, size)

    def _sized(self, value: ir.Value) -> tuple[int, ...]:
        """Concrete shape of a value whose dimensions are already given in n and p."""
        sizes = {"n": self.n, "p": self.p, "n+p": self.n + self.p}
        return tuple(d if isinstance(d, int) else sizes[d] for d in dims(value) or ())

    def _compute(self, node: ir.Node) -> None:
        from onnx.reference import ReferenceEvaluator

        for value in node.outputs:
            shape = _shape_of(self._types.get(value))
            if shape is not None and int(np.prod(shape, dtype=np.float64)) > ELEMENT_LIMIT:
                raise _too_large(node, int(np.prod(shape, dtype=np.float64)))
        if node.op_type in _SHAPE_OF:
            self._compute_shape(node)
            return
        feeds = {v.name: self._content(v) for v in node.inputs if v is not None}
        version = self.model.opset_imports.get(node.domain, 1)
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(ir.serde.serialize_node(node), opsets={node.domain: version}).run(
                    None, feeds
                )
        except Exception as error:  # the evaluator raises whatever NumPy raises
            raise InputError(
                "a node that computes a shape, mask or position cannot be evaluated",
                where=describe(node),
                limit=f"{self.n} tokens after {self.p} cached ones: {error}",
                remedy="choose a smaller context, or export the model again",
            ) from error
        for value, result in zip(node.outputs, results, strict=False):
            self._values[value] = np.asarray(result)
            self._types[value] = _tensor_type(
                ir.DataType.from_numpy(self._values[value].dtype), self._values[value].shape
            )

    def _compute_shape(self, node: ir.Node) -> None:
        source = node.inputs[0]
        shape = _shape_of(self._types[source]) if source is not None else None
        if shape is None:
            raise _by_content(node.inputs[0] or node.outputs[0])
        if node.op_type == "Size":
            self._values[node.outputs[0]] = np.array(int(np.prod(shape)), np.int64)
        else:
            part = shape[slice(attribute(node, "start", 0), attribute(node, "end", None))]
            self._values[node.outputs[0]] = np.array(part, np.int64)


def unknown_op(node: ir.Node) -> UnsupportedError:
    """The error for an op that no rewrite and no schema knows."""
    return UnsupportedError(
        f"op {node.domain or 'ai.onnx'}::{node.op_type} is not understood",
        where=describe(node),
        limit="the canonical ops and the rewrites in bitwright/frontend/normalise",
        remedy="export the model with standard ops, or add a rewrite for this one",
    )


def _by_content(value: ir.Value) -> UnsupportedError:
    return UnsupportedError(
        "a shape, mask or position depends on the content of the tokens",
        where=_where(value),
        limit="lengths, masks and rotary tables may depend on lengths and positions only",
        remedy="export the model without data-dependent control flow",
    )


def _too_large(node: ir.Node, size: int) -> InputError:
    return InputError(
        f"a constant part of the graph would have {size} elements",
        where=describe(node),
        limit=f"{ELEMENT_LIMIT} elements",
        remedy="choose a smaller context, or export the model again",
    )


def _where(value: ir.Value) -> str:
    node = value.producer()
    return f"value '{value.name}'" if node is None else describe(node)


def _tensor_type(dtype: ir.DataType, shape: tuple[int, ...]) -> Any:
    import onnx

    return onnx.helper.make_tensor_type_proto(int(dtype), shape)


def _shape_of(type_proto: Any) -> tuple[int, ...] | None:
    if type_proto is None or not type_proto.HasField("tensor_type") or not type_proto.tensor_type.HasField("shape"):
        return None
    sizes = type_proto.tensor_type.shape.dim
    return tuple(d.dim_value for d in sizes) if all(d.HasField("dim_value") for d in sizes) else None
