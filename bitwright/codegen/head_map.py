"""Multiply every head of a row by the matrix of its group of heads.

Kernel arguments, in order (``n`` is symbolic unless ``rows=1``)::

    x f32[n, heads * D], matrices f32[groups, D, D] [, shift f32[groups, D]], y f32[n, heads * D] (output)

    y[i, h] = x[i, h] @ matrices[g] + shift[g],  g = h // (heads / groups)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.checks import check_lanes, check_positive
from bitwright.errors import UnsupportedError

ACCUMULATORS = 8
"""Vectors of one head that are computed at a time: enough to hide the latency of a multiply-add."""


@dataclass(frozen=True)
class HeadMapSpec:
    """One kernel; ``rows`` 1 for decode, None for a symbolic number of tokens."""

    heads: int
    groups: int
    head_dim: int
    shift: bool
    rows: Literal[1] | None = None
    lanes: int = 8

    def __post_init__(self) -> None:
        for name in ("heads", "groups", "head_dim"):
            check_positive(name, getattr(self, name))
        check_lanes(self.lanes)
        if self.heads % self.groups:
            raise UnsupportedError(
                f"{self.heads} heads in {self.groups} groups",
                where="head map",
                limit="groups of equally many heads",
                remedy="check the numbers of query and key/value heads",
            )

    @property
    def name(self) -> str:
        return f"head_map_{self.heads}on{self.groups}x{self.head_dim}"


def build_head_map(spec: HeadMapSpec) -> Any:
    """The PrimFunc of ``spec`` (arguments: module docstring)."""
    from bitwright.codegen.builder import Registers, kernel, load, loop, splat, store, vector
    from bitwright.codegen.rowloop import for_rows, token_extent
    from bitwright.codegen.vectormath import hold, spans

    size, width = spec.head_dim, spec.heads * spec.head_dim
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        x = k.tensor("x", (n, width), "float32")
        matrices = k.tensor("matrices", (spec.groups, size, size), "float32")
        shift = k.tensor("shift", (spec.groups, size), "float32") if spec.shift else None
        y = k.tensor("y", (n, width), "float32")

        def head(i: Any, group: Any, base: Any, pieces: list[tuple[int, int]]) -> None:
            sums = {piece: Registers(1, vector("float32", piece[1])) for piece in pieces}
            for offset, lanes in pieces:
                start = splat(0.0, lanes) if shift is None else load(shift, [group, offset], lanes)
                sums[offset, lanes][0] = start
            with loop(size) as d:
                element = hold(x[i, base + d])
                for offset, lanes in pieces:
                    row = load(matrices, [group, d, offset], lanes)
                    sums[offset, lanes][0] = sums[offset, lanes][0] + splat(element, lanes) * row
            for offset, lanes in pieces:
                store(y, sums[offset, lanes][0], [i, base + offset], lanes)

        def row(i: Any) -> None:
            pieces = spans(size, spec.lanes)
            each = spec.heads // spec.groups
            with loop(spec.groups) as group, loop(each) as member:
                for first in range(0, len(pieces), ACCUMULATORS):
                    head(i, group, (group * each + member) * size, pieces[first : first + ACCUMULATORS])

        for_rows(n, width * size // 8, row)
    return k.func
