"""Loads that machine code keeps in the order in which they are written.

What prefetches memory in hardware follows the order of addresses; LLVM's schedulers interleave loads as registers
suggest, and a stream that is first touched out of order is read at half the speed, or less. Volatile loads keep their
order, and TensorIR has none: they are LLVM IR that is linked into the module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import index_of, vector

_IR = """
define internal <{lanes} x i8> @{symbol}(ptr %at) alwaysinline {{
  %loaded = load volatile <{lanes} x i8>, ptr %at, align 1
  ret <{lanes} x i8> %loaded
}}
"""


def _symbol(lanes: int) -> str:
    return f"bitwright_load_{lanes}_in_order"


def loads_in_order(lanes: int) -> Any:
    """``with loads_in_order(n):`` around what calls ``load_in_order`` with ``n`` lanes, within a function."""
    return T.attr(T.int32(0), "pragma_import_llvm", _IR.format(lanes=lanes, symbol=_symbol(lanes)))


def load_in_order(buffer: Any, indices: Sequence[Any], lanes: int) -> Any:
    """``lanes`` consecutive bytes (u8) from ``indices`` on, loaded once for every use: ``hold`` it."""
    element = buffer[tuple(index_of(index) for index in indices)]
    return T.call_extern(vector("uint8", lanes), _symbol(lanes), T.address_of(element))
