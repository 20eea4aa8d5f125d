"""Shapes and bounds that ``Reshape``, ``Expand`` and ``Slice`` read, as constants."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.graph import describe
from bitwright.frontend.lift.meaning import Meaning, Nothing, Operand
from bitwright.frontend.lift.survey import Survey

Ranges = dict[int, tuple[int, int, int]]


def operand_meaning(survey: Survey, node: ir.Node, index: int) -> Meaning | None:
    """Meaning of an operand of these ops; None for any other input.

    Raises:
        UnsupportedError: where a size or bound varies with the number of tokens in a way that no constant says.
    """
    if node.op_type == "Reshape" and index == 1:
        return _reshape(survey, node)
    if node.op_type == "Expand" and index == 1:
        return _expand(survey, node)
    return _slice(survey, node, index) if node.op_type == "Slice" and index >= 1 else None


def _reshape(survey: Survey, node: ir.Node) -> Meaning:
    shapes = survey.shapes(node.outputs[0])
    if len({len(shape) for shape in shapes}) == 1:
        target = [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True)]
        if target.count(-1) <= 1:
            return Operand(tuple(target))
    raise UnsupportedError(
        "a reshape has more than one dimension that varies with the number of tokens",
        where=describe(node),
        limit=f"shapes {shapes} for (new, cached) tokens {list(survey.points)}",
        remedy="export the model with batch size 1",
    )


def _expand(survey: Survey, node: ir.Node) -> Meaning:
    """The sizes to expand to, 1 where the input already has the size."""
    before, after = survey.shapes(node.inputs[0]), survey.shapes(node.outputs[0])
    if before == after:
        return Nothing()
    target = []
    for axis in range(-len(after[0]), 0):
        kept = all(len(b) >= -axis and b[axis] == a[axis] for b, a in zip(before, after, strict=True))
        if not kept and len({a[axis] for a in after}) > 1:
            raise UnsupportedError(
                "a value is repeated once per token",
                where=describe(node),
                limit="Expand may repeat a constant number of times",
                remedy="export the model with torch.onnx.export(dynamo=True)",
            )
        target.append(1 if kept else after[0][axis])
    return Operand(tuple(target))


def _slice(survey: Survey, node: ir.Node, index: int) -> Meaning:
    """Bounds of the axes that are really cut."""
    found = [_ranges(survey, node, at) for at in survey.points]
    if any(ranges != found[0] for ranges in found):
        raise UnsupportedError(
            "a slice along the tokens is not understood",
            where=describe(node),
            limit="slices may cut features, not tokens",
            remedy="export the model so that it returns logits of all positions",
        )
    if not found[0]:
        return Nothing()
    cut = sorted(found[0].items())
    columns = {
        1: tuple(low for _, (low, _, _) in cut),
        2: tuple(high for _, (_, high, _) in cut),
        3: tuple(axis for axis, _ in cut),
        4: tuple(step for _, (_, _, step) in cut),
    }
    if index == 1:  # axes and steps may be absent from the node; they are set together with the starts
        return _Bounds(columns)
    return Operand(columns[index])


class _Bounds:
    """All four operands of a ``Slice`` at once."""

    def __init__(self, columns: dict[int, tuple[int, ...]]) -> None:
        self._columns = columns

    def install(self, survey: Survey, node: ir.Node, index: int, positions: ir.Value) -> None:
        for at, numbers in self._columns.items():
            Operand(numbers).install(survey, node, at, positions)


def _ranges(survey: Survey, node: ir.Node, at: tuple[int, int]) -> Ranges:
    """axis -> (start, end, step) of the axes that are cut at one point."""
    probe, source = survey.probe(*at), node.inputs[0]
    assert source is not None
    shape = probe.shape(source)
    read: list[list[int] | None] = [
        None if v is None else [int(x) for x in probe.value(v).reshape(-1)] for v in node.inputs[1:]
    ]
    starts, ends, axes, steps = read + [None] * (4 - len(read))
    assert starts is not None and ends is not None  # the op requires them
    axes = list(range(len(starts))) if axes is None else [axis % len(shape) for axis in axes]
    result: Ranges = {}
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        bounds = slice(start, end, step).indices(shape[axis])
        if bounds != (0, shape[axis], 1):
            result[axis] = bounds
    return result
