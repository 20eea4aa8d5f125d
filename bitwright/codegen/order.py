"""Elements of rows in another order: logits of a table whose rows are not in the order of tokens.

Arguments: x f32[n, W], places i32[W], y f32[n, W] (result): y[i, t] = x[i, places[t]].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.checks import check_positive
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.team import Phase, TeamKernel, share


@dataclass(frozen=True)
class PutInOrderSpec:
    """Rows of ``width`` elements; one, or any number."""

    width: int
    rows: Literal[1] | None = None

    def __post_init__(self) -> None:
        check_positive("width", self.width)

    @property
    def name(self) -> str:
        return f"put_in_order_{self.width}"


def put_in_order_team_kernel(spec: PutInOrderSpec) -> TeamKernel:
    """Every thread fills a part of the row."""

    def fill(buffers: Mapping[str, Any], thread: Any, threads: Any) -> None:
        from bitwright.codegen.builder import loop

        start, end = share(spec.width, thread, threads)
        with loop(end - start, start=start) as column:
            _copy(buffers, 0, column)

    shape = (1, spec.width)
    arguments = (
        TensorSpec("x", "float32", shape),
        TensorSpec("places", "int32", (spec.width,)),
        TensorSpec("y", "float32", shape),
    )
    return TeamKernel(spec.name, arguments, 1, (Phase(fill),))


def build_put_in_order(spec: PutInOrderSpec) -> Any:
    """PrimFunc: x, places, y."""
    from bitwright.codegen.builder import kernel, loop
    from bitwright.codegen.rowloop import for_rows, token_extent

    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        buffers = {"x": k.tensor("x", (n, spec.width), "float32"), "places": k.tensor("places", (spec.width,), "int32")}
        buffers["y"] = k.tensor("y", (n, spec.width), "float32")

        def row(i: Any) -> None:
            with loop(spec.width) as column:
                _copy(buffers, i, column)

        for_rows(n, spec.width, row)
    return k.func


def _copy(buffers: Mapping[str, Any], row: Any, column: Any) -> None:
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    at = T.int64(row) if isinstance(row, int) else row
    T.buffer_store(buffers["y"], buffers["x"][at, T.cast(buffers["places"][column], "int64")], [at, column])
