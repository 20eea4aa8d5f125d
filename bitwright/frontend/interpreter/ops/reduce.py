"""Reductions along axes, and softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.frontend.interpreter.registry import op


def _axes(x: Tensor, axes: Tensor | None, noop: int) -> tuple[int, ...]:
    """The axes to reduce: without any, all of them or, by ``noop_with_empty_axes``, none."""
    chosen = tuple(int(a) for a in axes.tolist()) if axes is not None else ()
    if chosen:
        return chosen
    return () if noop else tuple(range(x.dim()))


@op("ReduceMean", 18)
def reduce_mean(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    chosen = _axes(x, axes, noop_with_empty_axes)
    return x.mean(chosen, keepdim=bool(keepdims)) if chosen else x


@op("ReduceSum", 13)
def reduce_sum(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    chosen = _axes(x, axes, noop_with_empty_axes)
    return x.sum(chosen, keepdim=bool(keepdims)) if chosen else x


@op("ReduceMax", 20)
def reduce_max(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    chosen = _axes(x, axes, noop_with_empty_axes)
    return x.amax(chosen, keepdim=bool(keepdims)) if chosen else x


@op("Softmax", 13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)
