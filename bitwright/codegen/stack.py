"""Vectors on the stack lie on cache lines.

LLVM spills registers in the middle of its work on a function, when it has decided that the function leaves the stack
as its caller did: at a multiple of 16 bytes. Spilled vectors then cross cache lines, or not, by where the operating
system has put the stack of the process. Something on the stack that wants a line of its own makes LLVM align the stack
from the beginning, and spills with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

_SYMBOL = "bitwright_align_stack"
_IR = f"""
define internal void @{_SYMBOL}() alwaysinline {{
  %line = alloca i64, align 64
  store volatile i64 0, ptr %line, align 64
  ret void
}}
"""


@contextmanager
def aligned_stack() -> Iterator[None]:
    """Around the code of a function, or of the body of a parallel loop, which becomes a function."""
    with T.attr(T.int32(0), "pragma_import_llvm", _IR):
        T.evaluate(T.call_extern("void", _SYMBOL))
        yield
