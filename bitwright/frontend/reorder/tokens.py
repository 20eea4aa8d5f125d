"""Rows of the token table: which token has which row is a choice, as long as both ends of the model know it.

The graph looks up the row of a token before the table, and puts logits back into the tokens' order behind the matrix
that makes them: with rank[t] the row of token t, rows = Gather(table, Gather(rank, ids)) and
logits = Gather(x W^T, rank) along the last axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.frontend.canonical import ELEMENTWISE
from bitwright.frontend.graph import Editor, dims, is_op
from bitwright.frontend.neighbours import change, constant_shape
from bitwright.frontend.roles import Role
from bitwright.program import TOKEN_RANK

Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenRows:
    """Matrices that have a row per token.

    Attributes:
        table: name of the tensor [tokens, width] that is looked up.
        head: name of the tensor [width, tokens] that makes the logits; None: the table does.
        tokens: how many there are.
    """

    table: str
    head: str | None
    tokens: int


def token_rows(model: ir.Model) -> TokenRows | None:
    """Of a canonical decoder; None if something else reads the matrices, or they have rows for something else."""
    look_ups, products = _look_ups(model.graph), _heads(model.graph)
    if len(look_ups) != 1 or len(products) != 1:
        return None
    table, weight = look_ups[0].inputs[0], products[0].inputs[1]
    assert table is not None and weight is not None  # as they were found
    source = weight.producer()
    tied = source is not None and source.inputs[0] is table
    readers = {use.node for use in table.uses()}
    known = {look_ups[0], source} if tied else {look_ups[0]}
    tokens = constant_shape(table)[0]
    if readers != known or len(weight.uses()) != 1 or not (tied or constant_shape(weight)[1:] == (tokens,)):
        return None
    return TokenRows(str(table.name), None if tied else str(weight.name), tokens)


def reorder_tokens(model: ir.Model, place: TokenRows, order: Order) -> None:
    """Let token ``order[i]`` have row ``i``; the weights of ``model`` change, and its graph."""
    editor, weights = Editor(model), model.graph.initializers
    change(weights[place.table], lambda tensor: tensor[order])
    if place.head is not None:
        change(weights[place.head], lambda tensor: tensor[:, order])
    rank = np.empty(place.tokens, np.int32)
    rank[order] = np.arange(place.tokens, dtype=np.int32)
    places = editor.initializer(rank, TOKEN_RANK)
    look_ups, products = _look_ups(model.graph), _heads(model.graph)
    for node in look_ups:
        ids = node.inputs[1]
        rows = editor.op(node, "Gather", [places, ids], dims(ids), dtype=ir.DataType.INT32, axis=0)
        node.replace_input_with(1, rows)
    for node in products:
        _put_back(editor, node, places)


def _put_back(editor: Editor, node: ir.Node, places: ir.Value) -> None:
    """Behind ``node``; whoever read its result reads the logits of tokens, under the same name."""
    made = node.outputs[0]
    gather = ir.node("Gather", [made, places], {"axis": 2}, num_outputs=1, name=editor.fresh("Gather"))
    result = gather.outputs[0]
    result.dtype, result.shape = made.dtype, made.shape
    made.replace_all_uses_with(result, replace_graph_outputs=True)
    gather.replace_input_with(0, made)
    made.name, result.name = f"{made.name}.rows", made.name
    editor.graph.insert_after(node, gather)


def _look_ups(graph: ir.Graph) -> list[ir.Node]:
    return [
        node
        for node in graph
        if node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == Role.IDS.value
    ]


def _heads(graph: ir.Graph) -> list[ir.Node]:
    """Products with a constant matrix that reach the graph's result through nodes of single elements."""
    return list(_products_before(graph.outputs[0]))


def _products_before(value: ir.Value) -> Iterator[ir.Node]:
    waiting, seen = [value], set()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if is_op(node.outputs[0], "MatMul"):
            weight = node.inputs[1]
            if constant_shape(weight) or is_op(weight, "Transpose"):
                yield node
        elif node.op_type in ELEMENTWISE:
            waiting += [v for v in node.inputs if v is not None]
