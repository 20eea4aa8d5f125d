"""TVM's pipeline from TensorIR to LLVM, made to work for private functions that need large scratch.

TVM allocates what does not fit the stack through its run time, which asks for a device. Only the packed calling
convention says which; private functions do not have it, so it is added to them just before allocations are lowered.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

NAME = "bitwright"
_CPU = 1  # kDLCPU


def _add_device(function: Any, _module: Any, _context: Any) -> Any:
    if function.attrs is not None and "global_symbol" in function.attrs:
        return function
    body = function.body
    for key, value in (("device_id", 0), ("device_type", _CPU)):
        body = tirx.AttrStmt(tirx.IntImm("int32", 0), key, tirx.IntImm("int32", value), body)
    return function.with_body(body)


def _pipeline() -> Any:
    lower, finalize_host, finalize_device = tirx.get_tir_pipeline("default")
    add_device = tirx.transform.prim_func_pass(_add_device, opt_level=0, name="bitwright.AddDevice")
    return tvm.transform.Sequential([lower, add_device]), finalize_host, finalize_device


def register() -> str:
    """Make the pipeline known to TVM and return its name, for ``build(..., tir_pipeline=name)``."""
    tirx.register_tir_pipeline(NAME, _pipeline)
    return NAME
