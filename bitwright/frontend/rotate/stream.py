"""Rotate the residual stream: every layer that writes it takes R into its columns, every layer that reads it R^-1.

RMS normalisation commutes with rotations once its gain stands in the weights behind it. An embedding table that is read
by nothing else takes R as well. A table that is also the lm_head stays as it is, for the final norm's gain stands
between the stream and it: looked-up rows are rotated on the fly, and the stream is rotated back before that norm.

In: a canonical graph. The stream begins at the looked-up rows of tokens and is what is added to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.graph import Editor, describe, is_op, scalar, token_ids
from bitwright.frontend.neighbours import change, constant_shape, linear, own, readers
from bitwright.frontend.rotate.change import Change
from bitwright.frontend.rotate.node import rotate, rotate_behind
from bitwright.hadamard import Rotation
from bitwright.moments import RowMap

Doubles = npt.NDArray[np.float64]


@dataclass
class _Stream:
    """Who touches the stream.

    Attributes:
        look_ups: nodes that pick rows of a table.
        writers: names of weights [inputs, width] and biases [width].
        norms: nodes whose readers take the gain and R^-1.
        heads: norms before a table that is looked up as well.
    """

    look_ups: list[ir.Node] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    norms: list[ir.Node] = field(default_factory=list)
    heads: list[ir.Node] = field(default_factory=list)

    @property
    def width(self) -> int:
        return constant_shape(self.look_ups[0].inputs[0])[1]


def rotate_stream(editor: Editor) -> Change:
    """Rotate the stream of the editor's graph.

    Raises:
        UnsupportedError: something other than linear layers writes the stream, or than RMS norms reads it.
    """
    stream = _stream(editor.graph)
    rotation = Rotation.of(stream.width)
    weights = editor.graph.initializers
    turn, changed = partial(_turned, rotation), 0
    maps: dict[str, RowMap] = {}
    for name in stream.writers:
        change(weights[name], turn)
        changed += 1
    for node in stream.look_ups:
        table, rows = node.inputs[0], node.outputs[0]
        if own([table]):
            change(table, turn)
            changed += 1
        else:
            rotate_behind(editor, rows, rotation)
    for node in stream.norms:
        gain = _gain(node)
        for weight in readers(node.outputs[0]):
            change(weight, partial(_behind, rotation, gain))
            maps[f"{weight.name}.T"] = partial(_normalised, rotation, gain)
            changed += 1
        ones = editor.initializer(np.ones(rotation.width, np.float32), f"{node.inputs[1].name}.folded")
        node.replace_input_with(1, ones)
    for node in stream.heads:
        node.replace_input_with(0, rotate(editor, node, node.inputs[0], rotation, transposed=True))
    return Change(changed, maps)


def _turned(rotation: Rotation, tensor: Doubles) -> Doubles:
    """tensor @ R"""
    return rotation.apply(tensor)


def _behind(rotation: Rotation, gain: Doubles, weight: Doubles) -> Doubles:
    """R^T diag(gain) weight"""
    return rotation.apply((gain[:, None] * weight).T).T


def _normalised(rotation: Rotation, gain: Doubles, rows: Doubles) -> Doubles:
    """rows diag(gain)^-1 R; where the gain is zero nothing is known, and the weights behind are zero."""
    inverse = np.divide(1, gain, out=np.zeros_like(gain), where=gain != 0)
    return rotation.apply(rows * inverse)


def _gain(node: ir.Node) -> Doubles:
    value = node.inputs[1]
    assert value is not None and value.const_value is not None  # canonical norms have constant gains
    return np.asarray(value.const_value.numpy(), np.float64)


def _stream(graph: ir.Graph) -> _Stream:
    stream = _Stream([node for node in graph if _looks_up_tokens(node)])
    if not stream.look_ups:
        raise UnsupportedError("the model looks up no tokens: there is no residual stream", where="--rotate residual")
    inside = {node.outputs[0] for node in stream.look_ups}
    for node in graph:
        at = [value for value in node.inputs if value in inside]
        if not at:
            continue
        others = [value for value in node.inputs if value is not None and value not in inside]
        if _carries_on(stream, node, others):
            inside.add(node.outputs[0])
        elif not _reads(stream, node):
            raise _refused(node)
    if any(value.is_graph_output() for value in inside):
        raise _refused(graph.outputs[0].producer())
    return stream


def _looks_up_tokens(node: ir.Node) -> bool:
    """Does the node pick rows of a matrix by token, directly or by way of a table of the tokens' rows?"""
    if node.op_type != "Gather" or len(constant_shape(node.inputs[0])) != 2:
        return False
    ids = token_ids(node.inputs[1])
    return ids is not None and ids.name == "input_ids"


def _carries_on(stream: _Stream, node: ir.Node, others: list[ir.Value]) -> bool:
    """Is the node's result the stream again: something added to it, or all of it scaled?"""
    if node.op_type == "Mul":
        return len(others) == 1 and scalar(others[0]) is not None
    return node.op_type == "Add" and all(_writes(stream, value) for value in others)


def _writes(stream: _Stream, value: ir.Value) -> bool:
    """Is the value the result of a linear layer? Its tensors are noted."""
    found = linear(value, stream.width)
    stream.writers.extend(found or ())
    return found is not None


def _reads(stream: _Stream, node: ir.Node) -> bool:
    """Can the layers behind the norm take its gain and R^-1, or is it the one before a tied lm_head? It is noted."""
    result = node.outputs[0]
    if node.op_type != "RMSNormalization":
        return False
    if readers(result):
        stream.norms.append(node)
        return True
    tables = [look_up.inputs[0] for look_up in stream.look_ups]
    uses = list(result.uses())
    heads = [use.node.inputs[1] for use in uses if use.node.op_type == "MatMul" and use.idx == 0]
    stream.heads.append(node)
    return len(heads) == len(uses) == 1 and is_op(heads[0], "Transpose") and heads[0].producer().inputs[0] in tables


def _refused(node: ir.Node | None) -> UnsupportedError:
    return UnsupportedError(
        "the residual stream of this model cannot be rotated",
        where="the graph's result" if node is None else describe(node),
        limit="RMS norms alone read it, before linear layers, and linear layers alone write it",
        remedy="leave residual out of --rotate",
    )
