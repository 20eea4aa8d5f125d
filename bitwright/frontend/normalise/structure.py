"""Everything that depends on lengths and positions only is replaced by what it means.

In: any graph with dynamic shapes. Out: a graph in which every input of a node that handles token data is

* token data, a weight, or a small constant;
* a row of a constant table picked by position: ``Reshape(Gather(table, position_ids))``;
* ``bitwright::Mask`` (attributes ``form``, ``causal``, ``window``; see ``mask.py``), consumed by the attention rewrites.

Shapes of ``Reshape`` are constants with at most one -1, ``Slice`` and ``Expand`` have constant operands and are dropped where they do nothing. How
each exporter spells masks, rotary angles and shape arithmetic never matters: they are evaluated (``probe.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.graph import BITWRIGHT_DOMAIN, DECODED_LIMIT, Dims, Editor, describe, sweep
from bitwright.frontend.mask import classify
from bitwright.frontend.probe import Dependence, Probe
from bitwright.frontend.roles import Role, Roles

# Lengths at which values are compared: (new tokens, cached tokens). All four numbers n, p, n+p differ between the first two.
CACHED_POINTS = ((3, 2), (2, 5), (4, 0))
UNCACHED_POINTS = ((3, 0), (5, 0), (2, 0))
SMALLEST_CONTEXT = 8


@dataclass
class _Lift:
    editor: Editor
    roles: Roles
    context: int
    dependence: Dependence
    points: Sequence[tuple[int, int]]
    probes: dict[tuple[int, int], Probe] = field(default_factory=dict)
    done: dict[ir.Value, ir.Value] = field(default_factory=dict)
    shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)

    def probe(self, n: int, p: int) -> Probe:
        if (n, p) not in self.probes:
            self.probes[n, p] = Probe(self.editor.model, self.roles, n, p)
        return self.probes[n, p]

    def contents(self, value: ir.Value) -> list[np.ndarray]:
        points = self.points[:1] if value in self.dependence.static else self.points
        return [self.probe(*at).value(value) for at in points]

    def constant(self, array: np.ndarray, hint: str = "const") -> ir.Value:
        """An initializer with this content; equal contents share one."""
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.shared:
            self.shared[key] = self.editor.initializer(array, hint)
        return self.shared[key]


def lift(model: ir.Model, roles: Roles, context: int) -> None:
    """Replace structural values in place; ``context`` positions get tables.

    Raises:
        UnsupportedError: naming the node that reads a structural value of unknown meaning.
    """
    points = CACHED_POINTS if roles.past else UNCACHED_POINTS
    work = _Lift(Editor(model), roles, context, Dependence.of(model, roles), points)
    edges = _frontier(work)
    _evaluate_at_once(work, edges)
    edits = [(node, index, *_meaning(work, node, index)) for node, index in edges]
    positions = _positions_input(model, roles)
    for node, index, kind, payload in edits:
        _apply(work, node, index, kind, payload, positions)
    sweep(model)


def _frontier(work: _Lift) -> list[tuple[ir.Node, int]]:
    """(node, input index) wherever a node that handles token data reads a structural value that is computed."""
    heavy = _weight_arithmetic(work)
    edges = []
    for node in work.editor.graph:
        if not any(v in work.dependence.data for v in node.outputs):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value in work.dependence.data or value in heavy:
                continue
            if (
                value.producer() is not None
                or work.roles.get(Role.POSITIONS) is value
                or work.roles.get(Role.MASK) is value
            ) or node.op_type in ("Slice", "Reshape", "Expand"):
                edges.append((node, index))
    return edges


def _weight_arithmetic(work: _Lift) -> set[ir.Value]:
    """Values computed from large weights alone, such as their transposes: left for the rewrites that fold them lazily."""
    heavy: set[ir.Value] = set()
    for value in list(work.editor.graph.initializers.values()):
        if (
            value.const_value is not None
            and value.const_value.size > DECODED_LIMIT
            and len(value.const_value.shape) > 1
        ):
            heavy.add(value)
    for node in work.editor.graph:
        outputs_static = all(v in work.dependence.static for v in node.outputs)
        if outputs_static and any(v in heavy for v in node.inputs):
            heavy.update(node.outputs)
    return heavy


def _evaluate_at_once(work: _Lift, edges: list[tuple[ir.Node, int]]) -> None:
    """Fill the probes in one walk over the graph each, instead of one walk per value."""
    values = {v for node, i in edges if (v := node.inputs[i]) is not None}
    moving = [v for v in values if v not in work.dependence.static]
    resized = [node for node, _ in edges if node.op_type in ("Slice", "Expand", "Reshape")]
    shapes = [v for node in resized for v in (node.inputs[0], node.outputs[0]) if v is not None]
    for at in work.points:
        probe = work.probe(*at)
        probe.values(values if at == work.points[0] else moving)
        probe.shapes(shapes)


def _meaning(work: _Lift, node: ir.Node, index: int) -> tuple[str, object]:
    value = node.inputs[index]
    assert value is not None
    if node.op_type == "Reshape" and index == 1:
        return "reshape", _reshape_target(work, node)
    if node.op_type == "Expand" and index == 1:
        return "expand", _expand_target(work, node)
    if node.op_type == "Slice":
        return "slice", _slice_ranges(work, node)
    contents = work.contents(value)
    if all(np.array_equal(contents[0], other) for other in contents):
        return "constant", contents[0]
    table = _position_table(work, value, contents)
    if table is not None:
        return table
    if contents[0].ndim >= 2:
        mask = classify(lambda n, p: work.probe(n, p).value(value), work.context, bool(work.roles.past))
        if mask is not None:
            return "mask", mask
    raise UnsupportedError(
        f"the meaning of '{value.name}' is not understood",
        where=f"input {index} of {describe(node)}",
        limit="attention masks may be causal, causal with a sliding window, or show everything; other values may depend on the position only",
        remedy="export the model with attention_mask and position_ids as inputs",
    )


def _reshape_target(work: _Lift, node: ir.Node) -> list[int]:
    shapes = [work.probe(*at).shape(node.outputs[0]) for at in work.points]
    target = _with_one_unknown(shapes)
    if target is None:
        raise UnsupportedError(
            "a reshape has more than one dimension that varies with the number of tokens",
            where=describe(node),
            limit=f"shapes {shapes} for (new, cached) tokens {list(work.points)}",
            remedy="export the model with batch size 1",
        )
    return target


def _with_one_unknown(shapes: Sequence[tuple[int, ...]]) -> list[int] | None:
    if len({len(s) for s in shapes}) != 1:
        return None
    target = [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True)]
    return target if target.count(-1) <= 1 else None


def _expand_target(work: _Lift, node: ir.Node) -> list[int] | None:
    """The constant operand, 1 where the input already has the size; None where the op does nothing."""
    source = node.inputs[0]
    assert source is not None
    before = [work.probe(*at).shape(source) for at in work.points]
    after = [work.probe(*at).shape(node.outputs[0]) for at in work.points]
    if before == after:
        return None
    target = []
    for axis in range(-len(after[0]), 0):
        sizes = {s[axis] for s in after}
        kept = all(len(b) >= -axis and b[axis] == a[axis] for b, a in zip(before, after, strict=True))
        if not kept and len(sizes) > 1:
            raise UnsupportedError(
                "a value is repeated once per token",
                where=describe(node),
                limit="Expand may repeat a constant number of times",
            )
        target.append(1 if kept else after[0][axis])
    return target


def _slice_ranges(work: _Lift, node: ir.Node) -> tuple[list[int], ...] | None:
    """Constant starts, ends, axes and steps of the axes that are really cut; None where the op does nothing."""
    source = node.inputs[0]
    assert source is not None
    found: list[dict[int, tuple[int, int, int]]] = []
    for at in work.points:
        probe = work.probe(*at)
        shape = probe.shape(source)
        operands = [probe.value(v).reshape(-1).tolist() if v is not None else None for v in node.inputs[1:]]
        operands += [None] * (4 - len(operands))
        starts, ends, axes, steps = operands
        assert starts is not None and ends is not None
        axes = list(range(len(starts))) if axes is None else [a % len(shape) for a in axes]
        steps = [1] * len(starts) if steps is None else steps
        ranges = {}
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            size = shape[axis]
            low, high, stride = slice(start, end, step).indices(size)
            if (low, high, stride) != (0, size, 1):
                ranges[axis] = (low, high, stride)
        found.append(ranges)
    if all(ranges == found[0] for ranges in found):
        cut = sorted(found[0].items())
        if not cut:
            return None
        return [r[0] for _, r in cut], [r[1] for _, r in cut], [a for a, _ in cut], [r[2] for _, r in cut]
    raise UnsupportedError(
        "a slice along the tokens is not understood",
        where=describe(node),
        limit="slices may cut features, not tokens",
        remedy="export the model so that it returns logits of all positions",
    )


def _position_table(work: _Lift, value: ir.Value, contents: list[np.ndarray]) -> tuple[str, object] | None:
    """("rows", (table [context, K], shape)) for a value whose row i depends on position p+i only; ("constant", x) if it is the same everywhere."""
    shapes = [c.shape for c in contents]
    if contents[0].dtype.kind not in "fi" or len({len(s) for s in shapes}) != 1:
        return None
    moving = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    tokens = [at[0] for at in work.points]
    if len(moving) != 1 or [s[moving[0]] for s in shapes] != tokens:
        return None
    axis = moving[0]
    rows = work.probe(work.context, 0).value(value)
    for (n, p), content in zip(work.points, contents, strict=True):
        if not np.array_equal(content, np.take(rows, range(p, p + n), axis)):
            return None
    first = np.take(rows, [0], axis)
    if np.array_equal(rows, np.broadcast_to(first, rows.shape)):
        return "constant", first
    if any(size != 1 for size in rows.shape[:axis]) or rows.dtype.kind != "f":
        return None
    shape: Dims = tuple("n" if i == axis else size for i, size in enumerate(rows.shape))
    return "rows", (rows.reshape(work.context, -1), shape)


def _positions_input(model: ir.Model, roles: Roles) -> ir.Value:
    found = roles.get(Role.POSITIONS)
    if found is not None:
        return found
    value = ir.Value(name=Role.POSITIONS.value, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "n"]))
    model.graph.inputs.append(value)
    return value


def _apply(work: _Lift, node: ir.Node, index: int, kind: str, payload: object, positions: ir.Value) -> None:
    if node.graph is None:
        return
    value = node.inputs[index]
    if kind in ("expand", "slice") and payload is None:
        work.editor.replace(node.outputs[0], _source(node))
    elif kind in ("reshape", "expand"):
        node.replace_input_with(index, work.constant(np.array(payload, np.int64), "shape"))
        node.attributes.pop("allowzero", None)
    elif kind == "slice":
        _set_slice(work, node, payload)
    elif value is not None:
        if value not in work.done:
            work.done[value] = _build(work, node, value, kind, payload, positions)
        node.replace_input_with(index, work.done[value])


def _source(node: ir.Node) -> ir.Value:
    source = node.inputs[0]
    assert source is not None
    return source


def _set_slice(work: _Lift, node: ir.Node, payload: object) -> None:
    assert isinstance(payload, tuple)
    if len(node.inputs) != 5:
        node.resize_inputs(5)
    for index, operand in enumerate(payload, start=1):
        node.replace_input_with(index, work.constant(np.array(operand, np.int64), "range"))


def _build(work: _Lift, node: ir.Node, value: ir.Value, kind: str, payload: object, positions: ir.Value) -> ir.Value:
    hint = _name_hint(value)
    if kind == "constant":
        assert isinstance(payload, np.ndarray)
        return work.constant(payload, hint)
    # Structural values depend on no node that remains, so they may stand first; later readers find them above.
    first = work.editor.graph[0]
    if kind == "rows":
        table, shape = payload  # type: ignore[misc]  # _position_table builds it
        rows = work.editor.op(
            first, "Gather", [work.constant(table, hint), positions], (1, "n", table.shape[1]), axis=0
        )
        return rows if shape == (1, "n", table.shape[1]) else work.editor.reshape(first, rows, shape)
    return work.editor.op(
        first,
        "Mask",
        [],
        (1, 1, "n", "n+p"),
        domain=BITWRIGHT_DOMAIN,
        dtype=ir.DataType.FLOAT if payload.form == "additive" else ir.DataType.BOOL,  # type: ignore[attr-defined]
        form=payload.form,  # type: ignore[attr-defined]
        causal=int(payload.causal),  # type: ignore[attr-defined]
        window=payload.window,  # type: ignore[attr-defined]
    )


def _name_hint(value: ir.Value) -> str:
    """Name of the one weight that ``value`` is computed from, so that a derived constant keeps it; else its own name."""
    weights: set[str] = set()
    seen: set[ir.Value] = set()
    queue = [value]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if (
            current.is_initializer()
            and current.const_value is not None
            and current.const_value.size > 1
            and is_weight(current)
        ):
            weights.add(str(current.name))
        node = current.producer()
        if node is not None:
            queue.extend(v for v in node.inputs if v is not None)
    return weights.pop() if len(weights) == 1 else str(value.name)


def is_weight(value: ir.Value) -> bool:
    return value.dtype is ir.DataType.FLOAT
