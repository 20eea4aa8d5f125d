"""Build the Relax module of a model: the entry points share parameters and cache state.

Decoder: ``prefill`` (a chunk; logits of its last token), ``decode`` (one token), ``score`` (logits of every token).
Encoder: ``encode``. Arguments while the passes work: ``tokens [n] int64, position (shape of 1), k_cache.0,
v_cache.0, ...``
and then one variable per parameter; the last phase packs state and parameters into tuples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax, tirx

from bitwright import relax_ops
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.relax import elementwise, layers, tensors
from bitwright.frontend.relax.context import Context
from bitwright.frontend.relax.registry import convert
from bitwright.program import CACHE_BLOCK, CacheShape, Parameter, Program

# Importing these registers the converters.
CONVERTERS = (elementwise, layers, tensors)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def import_model(model: ImportedModel, *, capacity: int) -> Program:
    """Convert a canonical graph.

    Args:
        capacity: tokens the caches hold; rounded up to a whole cache block.

    Raises:
        UnsupportedError: naming the node that cannot be converted.
    """
    parameters: dict[str, Parameter] = {}
    if model.kind == "encoder":
        functions: list[tuple[str, int | None, bool]] = [("encode", None, False)]
    else:
        functions = [("prefill", None, True), ("decode", 1, False), ("score", None, False)]
    slots = round_up(capacity, CACHE_BLOCK)
    module = tvm.IRModule()
    for name, rows, last_only in functions:
        module[name] = _function(model, name, rows, last_only, slots, parameters)
    return Program(module, parameters, tuple(model.layers), slots, model.kind)


def _function(
    model: ImportedModel,
    name: str,
    rows: int | None,
    last_only: bool,
    slots: int,
    parameters: dict[str, Parameter],
) -> Any:
    graph = model.graph.graph
    n = rows if rows is not None else tirx.Var("n", "int64")
    start = tirx.Var("position", "int64")
    decoder = model.kind == "decoder"
    position = relax.Var("position", relax.ShapeType([start])) if decoder else None
    caches = [_cache_variables(i, shape, slots) for i, shape in enumerate(model.layers)] if decoder else []
    token_inputs = [value for value in graph.inputs if value.name in ("input_ids", "token_type_ids")]
    tokens = [relax.Var(str(value.name), relax.TensorType([n], "int64")) for value in token_inputs]
    builder = relax.BlockBuilder()
    context = Context(builder, n, min(slots, model.context), position, caches, parameters)
    state = [variable for pair in caches for variable in pair]
    # The parameter list is known only after conversion, so it is appended to this list in place of the builder's own.
    arguments = [*tokens, *([position] if decoder else []), *state]
    with builder.function(name, attrs={"num_input": len(arguments)}, private=False):
        with builder.dataflow():
            for value, variable in zip(token_inputs, tokens, strict=True):
                context.values[id(value)] = variable
            _bind_positions(context, graph.inputs, start if decoder else tirx.IntImm("int64", 0), n)
            output = _convert_nodes(context, graph, model, last_only)
            result = builder.emit_output(output)
        builder.emit_func_output(result, params=[*arguments, *context.variables.values()])
    return builder.get()[name]


def _cache_variables(index: int, shape: CacheShape, slots: int) -> tuple[Any, Any]:
    keys = [shape.kv_heads, slots // CACHE_BLOCK, shape.head_dim, CACHE_BLOCK]
    values = [shape.kv_heads, slots, shape.value_dim]
    return (
        relax.Var(f"k_cache.{index}", relax.TensorType(keys, "float32")),
        relax.Var(f"v_cache.{index}", relax.TensorType(values, "float32")),
    )


def _bind_positions(context: Context, inputs: Sequence[ir.Value], start: Any, n: Any) -> None:
    for value in inputs:
        if value.name == "position_ids":
            context.values[id(value)] = context.emit(relax.op.arange(start, start + n, 1, "int64"))
        elif value.name not in ("input_ids", "token_type_ids"):
            context.values[id(value)] = None  # a past tensor: only attention reads it, and it has the cache


def _convert_nodes(context: Context, graph: ir.Graph, model: ImportedModel, last_only: bool) -> Any:
    tail = _tail(graph) if last_only else frozenset()
    full: dict[int, Any] = {}
    rows = context.rows
    for node in graph:
        context.rows = 1 if node in tail else rows
        if node in tail:
            _keep_last_row(context, node, tail, full)
        convert(context, node)
        context.values.update(full)
        full.clear()
    return context.expression(graph.outputs[0])


def _tail(graph: ir.Graph) -> frozenset[ir.Node]:
    """Nodes from which no attention can be reached: every one of them works row by row, so the last row suffices."""
    before: set[ir.Node] = set()
    stack = [node for node in graph if node.op_type == "Attention"]
    while stack:
        node = stack.pop()
        if node in before:
            continue
        before.add(node)
        stack.extend(
            producer for value in node.inputs if value is not None and (producer := value.producer()) is not None
        )
    return frozenset(node for node in graph if node not in before)


def _keep_last_row(context: Context, node: ir.Node, tail: frozenset[ir.Node], full: dict[int, Any]) -> None:
    """Let a tail node see only the last row of what comes from before the tail."""
    for value in node.inputs:
        if value is None or value.const_value is not None or value.producer() in tail or id(value) in full:
            continue
        expression = context.raw(value)
        if not isinstance(expression, relax.Expr) or not isinstance(expression.ty, relax.TensorType):
            continue
        full[id(value)] = expression
        key = id(value)
        if key not in context.last_rows:
            context.last_rows[key] = context.emit(relax_ops.call("take_last", [expression]))
        context.values[key] = context.last_rows[key]
