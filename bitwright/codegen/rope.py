"""Rotary position embedding (Su et al. 2021) of query or key heads.

Kernel arguments, in order::

    x f32[n, heads * D], cos f32[P, R/2], sin f32[P, R/2], positions i64[n], y f32[n, heads * D] (output)

``n`` is symbolic unless ``rows=1``; every position is in 0..P-1 (not checked: the session bounds it by the context).

The first R elements of each head are rotated in pairs, (a, b) -> (a cos - b sin, b cos + a sin); the rest are copied.
Pair j is (x[j], x[j + R/2]) in the half-split form and (x[2j], x[2j + 1]) in the interleaved form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.checks import check_lanes, check_positive
from bitwright.codegen.columns import Columns
from bitwright.errors import UnsupportedError


@dataclass(frozen=True)
class RopeSpec:
    """One rotary kernel.

    Attributes:
        heads: heads in a row of x.
        head_dim: D, elements of a head.
        rotary_dim: R, leading elements of a head that rotate (even, at most D).
        positions: P, rows of the tables.
        interleaved: pairs are neighbours instead of halves.
        rows: 1 for a decode kernel, None for a symbolic number of tokens.
        lanes: float32 lanes of the target's vectors.
        source: the columns of x that are the heads; None where x has no others.
    """

    heads: int
    head_dim: int
    rotary_dim: int
    positions: int
    interleaved: bool = False
    rows: Literal[1] | None = None
    lanes: int = 8
    source: Columns | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "rotary_dim", "positions"):
            check_positive(name, getattr(self, name))
        check_lanes(self.lanes)
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise UnsupportedError(
                f"rotary dimension {self.rotary_dim} of heads of {self.head_dim}",
                where="rotary kernel",
                limit="an even number, at most the head dimension",
                remedy="check rotary_embedding_dim and the cos/sin tables",
            )

    @property
    def name(self) -> str:
        return f"rope_{self.heads}x{self.head_dim}"


def build_rope(spec: RopeSpec) -> Any:
    """The PrimFunc of ``spec`` (arguments: module docstring)."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import kernel, load, loop, splat, store
    from bitwright.codegen.rowloop import for_rows, token_extent
    from bitwright.codegen.vectormath import for_spans, hold

    width, half = spec.heads * spec.head_dim, spec.rotary_dim // 2
    source = spec.source or Columns.all(width)
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        x = k.tensor("x", (n, source.total), "float32")
        cos = k.tensor("cos", (spec.positions, half), "float32")
        sin = k.tensor("sin", (spec.positions, half), "float32")
        positions = k.tensor("positions", (n,), "int64")
        y = k.tensor("y", (n, width), "float32")

        def pair_at(i: Any, base: Any, j: Any, lanes: int) -> tuple[list[Any], list[Any]]:
            """Indices of both elements of pairs j .. j+lanes-1 of the head that starts at ``base``."""
            if not spec.interleaved:
                starts, step = (base + j, base + half + j), 1
            else:
                starts, step = (base + j * 2, base + j * 2 + 1), 2
            first, second = (start if lanes == 1 else T.ramp(start, T.int64(step), lanes) for start in starts)
            return [i, first], [i, second]

        def row(i: Any) -> None:
            position = T.Bind(positions[i])
            with loop(spec.heads) as head:
                base = head * spec.head_dim

                def rotate(j: Any, lanes: int) -> None:
                    first, second = pair_at(i, base, j, lanes)
                    a, b = (hold(x[at[0], at[1] + splat(T.int64(source.first), lanes)]) for at in (first, second))
                    c = hold(load(cos, [position, j], lanes))
                    s = hold(load(sin, [position, j], lanes))
                    T.buffer_store(y, a * c - b * s, first)
                    T.buffer_store(y, b * c + a * s, second)

                def copy(j: Any, lanes: int) -> None:
                    at = [i, base + spec.rotary_dim + j]
                    store(y, load(x, [i, at[1] + source.first], lanes), at, lanes)

                for_spans(half, spec.lanes, rotate)
                for_spans(spec.head_dim - spec.rotary_dim, spec.lanes, copy)

        for_rows(n, width, row)
    return k.func
