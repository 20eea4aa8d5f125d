"""Kernels as private functions on raw pointers, which the threads of a running step call.

A worker takes the kernel's arguments (a pointer per tensor, int64 scalars), then its scratch, then ``thread`` and
``threads``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.private import pointer, private_function
from bitwright.codegen.stack import aligned_stack
from bitwright.codegen.team import THREADS, TeamKernel
from bitwright.errors import InternalError


def team_worker(kernel: TeamKernel, phase: int, threads: int) -> Any:
    """What a thread does in one phase of a kernel; ``threads``: slots of per-thread scratch."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, is_private=True):
        T.func_name(f"{kernel.name}_{phase}")
        declared = []
        for spec in (*kernel.arguments, *kernel.scratch):
            variable = pointer(spec.name, spec.dtype) if spec.shape else tirx.Var(spec.name, "int64")
            declared.append((spec, T.arg(spec.name, variable)))
        thread = T.arg("thread", tirx.Var("thread", "int64"))
        count = T.arg("threads", tirx.Var("threads", "int64"))
        buffers = {}
        for spec, variable in declared:
            shape = tuple(T.int64(threads if extent == THREADS else extent) for extent in spec.shape)
            buffers[spec.name] = T.decl_buffer(shape, spec.dtype, data=variable) if shape else variable
        with aligned_stack():
            kernel.phases[phase].emit(buffers, thread, count)
    function = builder.get()
    return private_function(function.params, function.body)


def function_worker(function: Any, shapes: Sequence[Sequence[int] | None], name: str) -> Any:
    """A worker that computes what a PrimFunc computes, all of it.

    Args:
        shapes: the static shape of each argument, None for scalars; symbolic extents of the function become these.

    Raises:
        InternalError: the function takes something else than contiguous tensors and integers.
    """
    function = _with_shapes(function, shapes)
    parameters, declarations = [], []
    for variable in function.params:
        if isinstance(variable.ty, tirx.BufferType):
            data = pointer(variable.name, str(variable.ty.dtype))
            parameters.append(data)
            declarations.append(tirx.DeclBuffer(variable, data=data))
        else:
            parameters.append(variable)
    parameters += [tirx.Var("thread", "int64"), tirx.Var("threads", "int64")]
    body = tirx.SeqStmt([*declarations, _serial(function.body)])
    kept = {str(key): value for key, value in function.attrs.items() if str(key) != "global_symbol"}
    return private_function(parameters, body, kept)


def _with_shapes(function: Any, shapes: Sequence[Sequence[int] | None]) -> Any:
    if len(shapes) != len(function.params):
        raise InternalError(f"{len(function.params)} arguments, {len(shapes)} shapes", where="function_worker")
    instances = {}
    for variable, shape in zip(function.params, shapes, strict=True):
        if (shape is None) == isinstance(variable.ty, tirx.BufferType):
            raise InternalError(f"argument {variable.name} and shape {shape} do not fit", where="function_worker")
        if shape is not None and any(not isinstance(extent, tirx.IntImm) for extent in variable.ty.shape):
            instances[variable] = tirx.decl_buffer(
                [tirx.IntImm("int64", extent) for extent in shape], variable.ty.dtype, variable.name
            )
    return function.specialize(instances) if instances else function


def _serial(statement: Any) -> Any:
    """The statement with its outer parallel loops made serial: a team that already runs starts no other threads."""
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([_serial(part) for part in statement.seq])
    if isinstance(statement, tirx.IfThenElse):
        otherwise = statement.else_case
        return tirx.IfThenElse(
            statement.condition, _serial(statement.then_case), None if otherwise is None else _serial(otherwise)
        )
    if isinstance(statement, tirx.For):
        serial = tirx.ForKind.SERIAL if statement.kind == tirx.ForKind.PARALLEL else statement.kind
        return tirx.For(statement.loop_var, statement.min, statement.extent, serial, _serial(statement.body))
    return statement
