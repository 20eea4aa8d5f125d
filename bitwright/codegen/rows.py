"""Select rows.

``take_last``: x[n, ...], y[1, ...] (output): the last of n >= 1 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class TakeLastSpec:
    """``shape``: extents of one row; ``dtype``: of its elements."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        return f"take_last_{prod(self.shape)}"


def build_take_last(spec: TakeLastSpec) -> Any:
    """The PrimFunc of ``spec`` (arguments: module docstring)."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import kernel, loop, symbol

    with kernel(spec.name) as k:
        n = symbol("n")
        x = k.tensor("x", (n, *spec.shape), spec.dtype)
        y = k.tensor("y", (1, *spec.shape), spec.dtype)
        _copy(T, x, y, [n - 1], [T.int64(0)], spec.shape, loop)
    return k.func


def _copy(T: Any, x: Any, y: Any, source: list[Any], target: list[Any], shape: tuple[int, ...], loop: Any) -> None:
    if not shape:
        T.buffer_store(y, x[tuple(source)], target)
        return
    with loop(shape[0]) as i:
        _copy(T, x, y, [*source, i], [*target, i], shape[1:], loop)
