"""Checks of an ONNX file's tensors before their data is read: where external data lies, and whether sizes are true."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from bitwright.errors import InputError

MAX_RANK = 8


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """All tensors of a graph: initializers and attributes."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    for node in model.graph:
        for found in node.attributes.values():
            if found.type is ir.AttributeType.TENSOR:
                yield found.value
            elif found.type is ir.AttributeType.TENSORS:
                yield from found.value


def check(model: ir.Model, path: Path) -> None:
    """Check every tensor of the model read from ``path``.

    Raises:
        InputError: where external data lies outside the model's folder, is missing or too short, or a tensor claims
            more than its file holds.
    """
    size = path.stat().st_size
    for tensor in tensors(model):
        where = f"tensor '{tensor.name}' of {path}"
        shape = [int(d) for d in tensor.shape]
        if len(shape) > MAX_RANK or any(d < 0 for d in shape):
            raise InputError(
                f"shape {shape[:16]}",
                where=where,
                limit=f"at most {MAX_RANK} non-negative sizes",
                remedy="export the model again",
            )
        if tensor.dtype is ir.DataType.STRING:
            raise InputError(
                "a tensor of strings",
                where=where,
                limit="tensors of numbers",
                remedy="export the model without its tokenizer",
            )
        needed = math.ceil(math.prod(shape) * tensor.dtype.bitwidth / 8)
        if isinstance(tensor, ir.ExternalTensor):
            _check_file(tensor, needed, path, where)
        elif needed > size:
            raise _lying(where, f"{needed} bytes of data", f"the file has {size} bytes")


def _check_file(tensor: ir.ExternalTensor, needed: int, path: Path, where: str) -> None:
    folder = path.parent.resolve()
    location = Path(str(tensor.location))
    target = (folder / location).resolve()
    if location.is_absolute() or ".." in location.parts or not target.is_relative_to(folder):
        raise InputError(
            f"external data lies at '{tensor.location}'",
            where=where,
            limit=f"inside the model's folder {folder}, links followed",
            remedy="do not use this model, or copy its data beside it and export again",
        )
    if not target.is_file():
        raise InputError(
            f"the external data file '{tensor.location}' is missing",
            where=where,
            limit="a file beside the model",
            remedy="download it as well",
        )
    offset, length = tensor.offset or 0, tensor.length if tensor.length is not None else needed
    if offset < 0 or length != needed or offset + length > target.stat().st_size:
        raise _lying(
            where,
            f"bytes {offset} to {offset + length} of '{tensor.location}'",
            f"{needed} bytes, in a file of {target.stat().st_size}",
        )


def _lying(where: str, what: str, limit: str) -> InputError:
    return InputError(
        f"malformed ONNX file: {what}",
        where=where,
        limit=limit,
        remedy="the file is truncated or damaged: download or export it again",
    )
