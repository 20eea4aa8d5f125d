"""What a structural value that enters arithmetic means: a constant, rows of a table, or a mask."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.graph import Dims, describe
from bitwright.frontend.lift.meaning import Constant, Meaning, Rows, Visibility
from bitwright.frontend.lift.survey import Survey
from bitwright.frontend.mask import classify


def value_meaning(survey: Survey, node: ir.Node, index: int) -> Meaning:
    """Meaning of input ``index`` of ``node``.

    Raises:
        UnsupportedError: where it is none of the three.
    """
    value = node.inputs[index]
    assert value is not None
    contents = survey.contents(value)
    if all(np.array_equal(contents[0], other) for other in contents):
        return Constant(contents[0])
    meaning = _by_position(survey, value, contents)
    if meaning is not None:
        return meaning
    mask = None
    if contents[0].ndim >= 2:
        cached = bool(survey.roles.past)
        mask = classify(lambda n, p: survey.probe(n, p).value(value), survey.context, cached)
    if mask is not None:
        return Visibility(mask)
    raise UnsupportedError(
        f"the meaning of '{value.name}' is not understood",
        where=f"input {index} of {describe(node)}",
        limit="a mask may be causal, causal with a sliding window, or show everything; other values may depend on the "
        "position only",
        remedy="export the model with attention_mask and position_ids as inputs",
    )


def _by_position(survey: Survey, value: ir.Value, contents: list[np.ndarray]) -> Meaning | None:
    """Rows of a table, if exactly one axis counts the new tokens and row i depends on the position p+i only."""
    shapes = [content.shape for content in contents]
    if contents[0].dtype.kind != "f" or len({len(shape) for shape in shapes}) != 1:
        return None
    moving = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    if len(moving) != 1 or [shape[moving[0]] for shape in shapes] != [n for n, _ in survey.points]:
        return None
    axis = moving[0]
    rows = survey.probe(survey.context, 0).value(value)
    for (n, p), content in zip(survey.points, contents, strict=True):
        if not np.array_equal(content, np.take(rows, range(p, p + n), axis)):
            return None
    first = np.take(rows, [0], axis)
    if np.array_equal(rows, np.broadcast_to(first, rows.shape)):
        return Constant(first)
    if any(size != 1 for size in rows.shape[:axis]):
        return None
    shape: Dims = tuple("n" if i == axis else size for i, size in enumerate(rows.shape))
    return Rows(rows.reshape(survey.context, -1), shape)
