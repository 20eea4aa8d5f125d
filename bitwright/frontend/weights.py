"""The initializers of a canonical graph: checked, each stored once, and digested."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.errors import InputError
from bitwright.frontend.graph import Editor, dims, sweep

Progress = Callable[[str, float], None]
_CHUNK = 1 << 22  # elements examined at once


def _content(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    try:
        return np.asarray(value.const_value.numpy())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the data of tensor '{value.name}' cannot be read",
            where=f"initializer '{value.name}'",
            limit=str(error),
            remedy="the file is truncated or damaged: download or export it again",
        ) from error


def _check(value: ir.Value, content: np.ndarray) -> None:
    expected = tuple(int(d) for d in value.const_value.shape)
    if content.shape != expected:
        raise InputError(
            f"tensor '{value.name}' has shape {content.shape}", where="initializers", limit=f"declared {expected}"
        )
    if content.dtype.kind != "f":
        return
    flat = content.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        finite = np.isfinite(part)
        if not finite.all():
            at = start + int(np.argmin(finite))
            raise InputError(
                f"tensor '{value.name}' holds {flat[at]}",
                where=f"initializer '{value.name}', element {at} of {flat.size}",
                limit="weights must be finite",
                remedy="the checkpoint is damaged, or overflowed in half precision: use another one",
            )


def content_digest(content: np.ndarray) -> str:
    """sha256 of type, shape and data."""
    state = hashlib.sha256(f"{content.dtype.str}{content.shape}".encode())
    state.update(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data if content.size else b"")
    return state.hexdigest()


def settle(model: ir.Model, progress: Progress | None = None) -> dict[str, str]:
    """Check all initializers, merge equal ones, tie an lm_head that equals the embedding's transpose.

    Returns: content digest by initializer name.

    Raises:
        InputError: for data that cannot be read, has another shape than declared, or holds NaN or infinities.
    """
    digests: dict[str, str] = {}
    first: dict[str, ir.Value] = {}
    values = list(model.graph.initializers.values())
    for index, value in enumerate(values):
        content = _content(value)
        _check(value, content)
        digest = content_digest(content)
        if digest in first:
            value.replace_all_uses_with(first[digest])
        else:
            first[digest] = value
            digests[str(value.name)] = digest
        if progress is not None:
            progress("check weights", (index + 1) / len(values))
    _tie(model, digests)
    sweep(model)
    return {name: digest for name, digest in digests.items() if name in model.graph.initializers}


def _tie(model: ir.Model, digests: dict[str, str]) -> None:
    """Let an lm_head [width, vocab] that equals the transposed embedding table read the table."""
    editor = Editor(model)
    tables = {v for node in model.graph if node.op_type == "Gather" and (v := node.inputs[0]) is not None}
    for node in list(model.graph):
        head = node.inputs[1] if node.op_type == "MatMul" else None
        if head is None or head.const_value is None or len(head.uses()) != 1:
            continue
        for table in tables:
            if dims(table) != (dims(head) or ())[::-1]:
                continue
            if content_digest(_content(head).T) == digests.get(str(table.name)):
                node.replace_input_with(1, editor.transpose(node, table, (1, 0)))
                break


ROTARY_ROWS = 16
"""Of a rotary table that tell it from others: the angles of one position say those of all, up to a longer context's
scaling, which has other angles from the first position on."""


def _rotary_tables(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        if node.op_type == "RotaryEmbedding":
            yield from (table for table in node.inputs[1:3] if table is not None and table.const_value is not None)


def graph_digest(model: ir.Model, digests: dict[str, str]) -> str:
    """sha256 of a graph's structure and weights; neither names enter nor for how many positions it was imported."""
    state = hashlib.sha256()
    numbers: dict[ir.Value, str] = {}
    for value in model.graph.inputs:
        numbers[value] = f"input {value.name}"
    for value in model.graph.initializers.values():
        numbers[value] = digests[str(value.name)]
    for table in _rotary_tables(model):
        numbers[table] = content_digest(_content(table)[:ROTARY_ROWS])
    for node in model.graph:
        inputs = [None if v is None else numbers[v] for v in node.inputs]
        attributes = sorted((name, _plain(found.value)) for name, found in node.attributes.items())
        state.update(repr((node.domain, node.op_type, inputs, attributes, len(node.outputs))).encode())
        for value in node.outputs:
            numbers[value] = f"v{len(numbers)}"
    state.update(repr([numbers[v] for v in model.graph.outputs]).encode())
    return state.hexdigest()


def _plain(value: Any) -> str:
    """Floats in the single precision that a file keeps of them: a traced graph is the one that is read back."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_plain, value))}]"
    return repr(float(np.float32(value)) if isinstance(value, float) else value)
