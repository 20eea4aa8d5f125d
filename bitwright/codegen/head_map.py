"""Multiply every head of a row by the matrix of its group of heads.

Kernel arguments, in order (``n`` is symbolic unless ``rows=1``)::

    x f32[n, heads * D], matrices f16[groups, D, D] [, shift f32[groups, D]], y f32[n, heads * D] (output)

    y[i, h] = x[i, h] @ matrices[g] + shift[g],  g = h // (heads / groups)

Arithmetic is float32. A row of a matrix is read and widened once for all heads of its group, of several tokens where
there are several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from bitwright.codegen.checks import check_lanes, check_positive
from bitwright.codegen.isa import GENERIC, Isa
from bitwright.errors import UnsupportedError

_T = TypeVar("_T")

BLOCKS = {16: (3, 3), 32: (4, 6)}
"""By vector registers: vectors of a matrix's row, and heads, whose products are summed at a time.

Measured with 16: sums in 12 registers spill wherever LLVM moves loads forward."""


@dataclass(frozen=True)
class HeadMapSpec:
    """One kernel.

    Attributes:
        heads, groups: heads of a row, and matrices; consecutive heads share one.
        head_dim: D.
        shift: a vector is added to every head.
        rows: 1 for decode, None for a symbolic number of tokens.
        isa: the target's vectors, and how halves are widened.
    """

    heads: int
    groups: int
    head_dim: int
    shift: bool
    rows: Literal[1] | None = None
    isa: Isa = GENERIC

    def __post_init__(self) -> None:
        for name in ("heads", "groups", "head_dim"):
            check_positive(name, getattr(self, name))
        check_lanes(self.isa.lanes)
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

    @property
    def lanes(self) -> int:
        """Of a vector; the portable family assumes 128 bits."""
        return self.isa.lanes if self.isa.dot != "portable" else self.isa.lanes // 2

    @property
    def tile(self) -> int:
        """Tokens that are multiplied at a time."""
        return 1 if self.rows == 1 else max(1, BLOCKS[self.isa.registers][1] // (self.heads // self.groups))


def build_head_map(spec: HeadMapSpec) -> Any:
    """The PrimFunc of ``spec`` (arguments: module docstring)."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import Registers, kernel, load, loop, splat, store, vector
    from bitwright.codegen.linear.unpack import widen_half
    from bitwright.codegen.rowloop import for_rows, token_extent
    from bitwright.codegen.vectormath import hold, spans

    size, width, isa = spec.head_dim, spec.heads * spec.head_dim, spec.isa
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        x = k.tensor("x", (n, width), "float32")
        matrices = k.tensor("matrices", (spec.groups, size, size), "float16")
        shift = k.tensor("shift", (spec.groups, size), "float32") if spec.shift else None
        y = k.tensor("y", (n, width), "float32")

        def block(group: Any, heads: Sequence[tuple[Any, Any]], columns: Sequence[tuple[int, int]]) -> None:
            """Some columns of some heads of a group, each a row and the column at which it starts."""
            keys = [(head, column) for head in range(len(heads)) for column in columns]
            sums = {key: Registers(1, vector("float32", key[1][1])) for key in keys}
            for key in keys:
                offset, lanes = key[1]
                sums[key][0] = splat(T.float32(0), lanes) if shift is None else load(shift, [group, offset], lanes)
            with loop(size) as d:
                elements = [hold(x[row, start + d]) for row, start in heads]
                for column in columns:
                    offset, lanes = column
                    weights = hold(widen_half(load(matrices, [group, d, offset], lanes), isa, lanes))
                    for head, element in enumerate(elements):
                        found = sums[head, column]
                        found[0] = found[0] + splat(element, lanes) * weights
            for head, (offset, lanes) in keys:
                row, start = heads[head]
                store(y, sums[head, (offset, lanes)][0], [row, start + offset], lanes)

        def tile(first: Any, rows: int) -> None:
            pieces = spans(size, spec.lanes)
            each = spec.heads // spec.groups
            most_columns, most_heads = BLOCKS[isa.registers]
            with loop(spec.groups) as group:
                heads = [(first + m // each, (group * each + m % each) * size) for m in range(rows * each)]
                for columns in _cut(pieces, most_columns if len(heads) > 1 else 2 * most_columns):
                    for some in _cut(heads, most_heads):
                        block(group, some, columns)

        tiles = n if spec.tile == 1 else T.floordiv(n, T.int64(spec.tile))
        for_rows(tiles, spec.tile * width * size // 8, lambda i: tile(i * spec.tile, spec.tile))
        if spec.tile > 1:
            with loop(n - tiles * spec.tile, start=tiles * spec.tile) as i:
                tile(i, 1)
    return k.func


def _cut(things: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """Parts of at most ``most``, as equal as can be."""
    parts = -(-len(things) // most)
    for part in range(parts):
        yield things[len(things) * part // parts : len(things) * (part + 1) // parts]
