"""Functions that only other functions of a library call: raw pointers, no packed calling convention, no checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

RETURNS = "int32"
"""Of every private function; it is 0, because TVM makes a function that runs out of memory return -1."""


def private_function(parameters: Sequence[Any], body: Any, attributes: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The PrimFunc; its pointers do not alias each other."""
    function = tirx.PrimFunc(parameters, body, ret_type=tvm.ir.PrimType(RETURNS))
    return function.with_attrs({**attributes, "tirx.noalias": True})


def pointer(name: str, dtype: str) -> Any:
    """A parameter that points to numbers of a type."""
    return tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype)))


def call(function: Any, arguments: Sequence[Any]) -> None:
    """Emit a call of a private function by its global variable."""
    T.evaluate(tvm.ir.Call(function, list(arguments), ret_ty=RETURNS))
