"""Loops over tokens of small kernels: serial, or parallel once the work outweighs the cost of a parallel launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import loop, symbol
from bitwright.codegen.stack import aligned_stack

PARALLEL_ELEMENTS = 32768
"""Elements from which a launch (about 4 us) costs less than the half of the serial time that it saves on two cores."""


def token_extent(rows: Literal[1] | None) -> Any:
    """The number of tokens: constant 1 in a decode kernel, else the symbol ``n``."""
    return 1 if rows == 1 else symbol("n")


def for_rows(extent: Any, width: int, body: Callable[[Any], None]) -> None:
    """Emit ``body(row)`` for every row; ``width`` elements of work per row decide at run time on parallel."""
    if extent == 1:
        body(T.int64(0))
        return
    with T.If(extent * T.int64(width) >= T.int64(PARALLEL_ELEMENTS)):
        with T.Then(), loop(extent, "parallel") as row:
            body(row)
        with T.Else(), aligned_stack(), loop(extent) as row:
            body(row)
