"""TVM's passes from TensorIR to LLVM in a list we can read, without those that can find nothing in code for CPUs.

Two differences from TVM's own list matter. It shrinks buffers to what is used of them, which takes nearly half of the
time that code generation takes; our kernels declare what they use. And it allocates what does not fit the stack through
its run time, which asks for a device: only the packed calling convention says which, private functions do not have it,
so it is added to them just before allocations are lowered.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

NAME = "bitwright"
_CPU = 1  # kDLCPU


def _add_device(function: Any, _module: Any, _context: Any) -> Any:
    if function.attrs is not None and "global_symbol" in function.attrs:
        return function
    body = function.body
    for key, value in (("device_id", 0), ("device_type", _CPU)):
        body = tirx.AttrStmt(tirx.IntImm("int32", 0), key, tirx.IntImm("int32", value), body)
    return function.with_body(body)


def _passes() -> list[Any]:
    return [
        # Blocks, of functions that TVM makes from Relax operators, to loops.
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        # Loops and buffers to what code generation knows.
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        # Functions to what can be called.
        tirx.transform.FP8ComputeLegalize(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
        tirx.transform.prim_func_pass(_add_device, opt_level=0, name="bitwright.AddDevice"),
    ]


def _pipeline() -> Any:
    _, finalize_host, finalize_device = tirx.get_tir_pipeline("default")
    return tvm.transform.Sequential(_passes()), finalize_host, finalize_device


def register() -> str:
    """Make the pipeline known to TVM and return its name, for ``build(..., tir_pipeline=name)``."""
    tirx.register_tir_pipeline(NAME, _pipeline)
    return NAME
