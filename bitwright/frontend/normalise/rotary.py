"""``x * cos + rotate_half(x) * sin`` becomes ``RotaryEmbedding`` on [1, n, heads*size] with constant tables.

Source of the formula: Su et al. 2021, in the half-split layout of GPT-NeoX: element i pairs with i + R/2. The angles
may be anything that depends on the position only, so every variant of frequency scaling is served.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, attribute, dims, integers, is_op, producer
from bitwright.frontend.normalise.rewrite import Key, Rewrite

HEADS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Rows:
    """A constant table [positions, width] from which rows are picked by ``positions``; ``axis`` is where tokens stand
    in the value.
    """

    table: np.ndarray
    positions: ir.Value
    axis: int


def rows_of(value: ir.Value | None) -> _Rows | None:
    shape = dims(value)
    gather = producer(value)
    if gather is not None and gather.op_type == "Reshape":
        gather = producer(gather.inputs[0])
    if shape is None or gather is None or gather.op_type != "Gather" or "n" not in shape:
        return None
    table, positions = gather.inputs[:2]
    if table is None or table.const_value is None or positions is None or not positions.is_graph_input():
        return None
    axis = shape.index("n")
    content = np.asarray(table.const_value.numpy())
    if shape[-1] != content.shape[-1] or any(d != 1 for i, d in enumerate(shape[:-1]) if i != axis):
        return None
    return _Rows(content, positions, axis - len(shape))


def slice_of_last(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(x, start, end) if ``value`` is ``x[..., start:end]``, as ``Slice`` or as a part of a ``Split``."""
    node, shape = producer(value), dims(value)
    if node is None or value is None or shape is None or node.inputs[0] is None:
        return None
    if node.op_type == "Slice":
        starts, ends, axes, steps = (integers(v) for v in node.inputs[1:5])
        if axes != [len(shape) - 1] or steps != [1] or starts is None or ends is None:
            return None
        return node.inputs[0], starts[0], ends[0]
    if node.op_type == "Split" and attribute(node, "axis", 0) % len(shape) == len(shape) - 1:
        sizes = [(dims(v) or (0,))[-1] for v in node.outputs]
        if not all(isinstance(s, int) for s in sizes):
            return None
        start = sum(int(s) for s in sizes[: node.outputs.index(value)])
        return node.inputs[0], start, start + int(shape[-1])
    return None


def _rotate_half(value: ir.Value | None) -> ir.Value | None:
    """``x`` if ``value`` is ``concat(-x[..., R/2:], x[..., :R/2])``."""
    node = producer(value)
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or not is_op(node.inputs[0], "Neg"):
        return None
    negated = producer(node.inputs[0])
    assert negated is not None
    upper, lower = slice_of_last(negated.inputs[0]), slice_of_last(node.inputs[1])
    if upper is None or lower is None or upper[0] is not lower[0]:
        return None
    width = (dims(upper[0]) or ("?",))[-1]
    if not isinstance(width, int) or width % 2 or upper[1:] != (width // 2, width) or lower[1:] != (0, width // 2):
        return None
    return upper[0]


def _product(value: ir.Value | None) -> list[tuple[ir.Value, _Rows]]:
    node = producer(value)
    if node is None or node.op_type != "Mul":
        return []
    pairs = ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0]))
    return [(x, rows) for x, other in pairs if x is not None and (rows := rows_of(other)) is not None]


def _match(node: ir.Node) -> tuple[ir.Value, _Rows, _Rows] | None:
    for plain, turned in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        for x, cos in _product(plain):
            for rotated, sin in _product(turned):
                if _rotate_half(rotated) is x:
                    return x, cos, sin
    return None


def _half(rows: _Rows) -> np.ndarray | None:
    """The first half of the columns, where the second repeats it."""
    width = rows.table.shape[1]
    lower, upper = rows.table[:, : width // 2], rows.table[:, width // 2 :]
    return lower if width % 2 == 0 and np.array_equal(lower, upper) else None


def _whole(x: ir.Value, output: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(input, output) of the whole heads, where only their first ``R`` values are rotated and the rest passes by."""
    part, uses = slice_of_last(x), list(output.uses())
    if part is None or part[1] != 0 or len(uses) != 1 or uses[0].node.op_type != "Concat":
        return x, output
    concat = uses[0].node
    rest = slice_of_last(concat.inputs[1]) if len(concat.inputs) == 2 and concat.inputs[0] is output else None
    width = (dims(part[0]) or ("?",))[-1]
    if rest is None or rest[0] is not part[0] or rest[1:] != (part[2], width):
        return x, output
    return part[0], concat.outputs[0]


def _apply(node: ir.Node, editor: Editor) -> bool:
    match = _match(node)
    if match is None:
        return False
    x, cos, sin = match
    rotated_width = (dims(x) or ("?",))[-1]
    x, output = _whole(x, node.outputs[0])
    shape, tables = dims(x), (_half(cos), _half(sin))
    if shape is None or len(shape) != 4 or cos.axis != sin.axis or tables[0] is None or tables[1] is None:
        return False
    heads_first = shape[2] == "n" and cos.axis == -2
    if not heads_first and not (shape[1] == "n" and cos.axis == -3):
        return False
    heads, width = (shape[1] if heads_first else shape[2]), shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return False
    tokens_first = editor.transpose(node, x, HEADS_FIRST) if heads_first else x
    flat = editor.reshape(node, tokens_first, (1, "n", heads * width))
    rotated = editor.op(
        node,
        "RotaryEmbedding",
        [flat, _table(editor, tables[0], "cos"), _table(editor, tables[1], "sin"), cos.positions],
        (1, "n", heads * width),
        num_heads=heads,
        interleaved=0,
        rotary_embedding_dim=0 if rotated_width == width else rotated_width,
    )
    result = editor.reshape(node, rotated, (1, "n", heads, width))
    editor.replace(output, editor.transpose(node, result, HEADS_FIRST) if heads_first else result)
    return True


def _table(editor: Editor, content: np.ndarray, name: str) -> ir.Value:
    """The initializer with this content: layers share their tables."""
    content = np.ascontiguousarray(content, np.float32)
    for value in editor.graph.initializers.values():
        tensor = value.const_value
        if (
            str(value.name).startswith(f"rotary.{name}")
            and tensor is not None
            and list(tensor.shape) == list(content.shape)
            and np.array_equal(tensor.numpy(), content)
        ):
            return value
    return editor.initializer(content, f"rotary.{name}")


REWRITE = Rewrite("rotary", (Key("Add"),), _apply)
