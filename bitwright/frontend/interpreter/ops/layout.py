"""Choosing and rearranging elements without computing on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bitwright.frontend.interpreter.registry import op


def _ints(x: Tensor) -> list[int]:
    return [int(i) for i in x.flatten().tolist()]


@op("Gather", 13)
def gather(table: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The slices of ``table`` at ``indices`` (int, any shape) along ``axis``; negative indices count from the end."""
    axis = axis % table.dim()
    indices = torch.where(indices < 0, indices + table.shape[axis], indices)
    picked = table.index_select(axis, indices.flatten())
    return picked.reshape(*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])


@op("Reshape", 23)
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """A zero in ``shape`` copies that dimension of ``x`` unless ``allowzero``; one -1 is inferred."""
    sizes = _ints(shape)
    return x.reshape(sizes if allowzero else [size or x.shape[i] for i, size in enumerate(sizes)])


@op("Transpose", 23)
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.dim()))))


@op("Squeeze", 23)
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(_ints(axes))


@op("Unsqueeze", 23)
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """``axes`` are positions in the result."""
    chosen = _ints(axes)
    rank = x.dim() + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


@op("Concat", 13)
def concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


@op("Split", 18)
def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Tensor, ...]:
    """Either explicit ``sizes`` or ``num_outputs`` equal parts, the last one smaller where they do not divide."""
    if sizes is not None:
        return torch.split(x, _ints(sizes), axis)
    if num_outputs is None:
        raise ValueError("neither sizes nor num_outputs is given")
    return torch.split(x, -(-x.shape[axis] // num_outputs), axis)


@op("Slice", 13)
def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    """Python's slicing on each of ``axes``; steps may be negative."""
    begin, end = _ints(starts), _ints(ends)
    along = _ints(axes) if axes is not None else list(range(len(begin)))
    stride = _ints(steps) if steps is not None else [1] * len(begin)
    for a, start, stop, step in zip(along, begin, end, stride, strict=True):
        a = a % x.dim()
        if step > 0:
            x = x[(slice(None),) * a + (slice(start, stop, step),)]
            continue
        rows = range(*slice(start, stop, step).indices(x.shape[a]))
        x = x.index_select(a, torch.tensor(list(rows), dtype=torch.int64, device=x.device))
    return x


@op("Expand", 13)
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast in both directions: a dimension of ``shape`` may also be smaller than that of ``x``."""
    return torch.broadcast_to(x, np.broadcast_shapes(tuple(x.shape), tuple(_ints(shape))))


@op("Shape", 23)
def shape_(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


@op("Range", 11)
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


@op("ConstantOfShape", 23)
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """``value`` has one element; without it the result is float32 zeros."""
    value = torch.zeros(1, device=shape.device) if value is None else value
    return value.reshape(()).expand(_ints(shape))


@op("Constant", 23)
def constant(*, value: Tensor) -> Tensor:
    return value
