"""Take the decode step out of the VM: a list of kernel calls with fixed memory, run by one parallel region.

In: a lowered module. Out: the module without ``decode``, and ``program.step``. With one token every shape is known,
    so the function is a straight line of kernels; slices and reshapes of rows become places in memory. Kernels that
    know how threads share them (``team_kernels``) do so; all others, TVM's own included, are small and computed by
    every thread for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir.expr import GenericConst

from bitwright.codegen.argmax import argmax_team_kernel
from bitwright.codegen.step.program import Operand, Operation, StepProgram
from bitwright.codegen.step.worker import function_worker, team_worker
from bitwright.codegen.team import THREADS, TeamKernel
from bitwright.passes.base import bindings, rewrite, with_event
from bitwright.program import Parameter, Program, Step

_VIEW = "bitwright.view"
_BYTES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


class _NotFlatError(Exception):
    """Why the decode function stays in the VM."""


@dataclass(frozen=True)
class FlattenDecode:
    """See the module's description.

    Attributes:
        threads: the most threads that a step may run on.
        lanes: of the target's vectors, for the kernel that finds the best token.
    """

    threads: int
    lanes: int
    name: str = "flatten_decode"

    def __call__(self, program: Program) -> Program:
        if program.kind != "decoder":
            return program
        try:
            step, constants = self._flatten(program)
        except _NotFlatError as reason:
            return replace(program, step_refused=str(reason))
        parameters = {**program.parameters, **{p.name: p for p in constants}}
        module = _without_decode(program.module)
        flat = replace(program, module=module, step=step, parameters=parameters)
        return with_event(flat, self.name, operations=len(step.program.operations), workers=len(step.workers))

    def _flatten(self, program: Program) -> tuple[Step, list[Parameter]]:
        module = _legalised(program.module)
        weights = {name: i for i, name in enumerate(program.parameters)}
        flattener = _Flattener(module, program.team_kernels, weights, self.threads)
        logits = flattener.run(module["decode"])
        vocab = flattener.add_best(logits, self.lanes)
        step = StepProgram(tuple(flattener.operations), tuple(flattener.value_bytes))
        return Step(step, flattener.workers, vocab), flattener.constants


def _legalised(module: Any) -> Any:
    """``decode`` alone with the PrimFuncs it calls, views marked, everything else a call of a PrimFunc."""
    others = {v: module[v] for v in module.get_global_vars()}
    kept = {v: f for v, f in others.items() if isinstance(f, tirx.PrimFunc) or v.name_hint == "decode"}
    marked = rewrite(tvm.IRModule(kept), _mark_views)
    return relax.transform.LegalizeOps()(marked)


def _mark_views(_rewriter: Any, variable: Any, value: Any) -> Any:
    """Reshapes, and slices of one contiguous run of elements, as calls of ``bitwright.view``."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op):
        return None
    if value.op.name == "relax.reshape":
        return _view(value.args[0], 0, variable)
    if value.op.name != "relax.strided_slice" or any(not isinstance(d, tirx.IntImm) for d in variable.ty.shape.values):
        return None
    start = _slice_start(value)
    return None if start is None else _view(value.args[0], start, variable)


def _slice_start(value: Any) -> int | None:
    """The first element of a slice along the last axis of a single row; None if the slice is something else."""
    x, axes, begin, *_ = value.args
    shape = [int(extent) for extent in x.ty.shape.values]
    steps = [int(s.value) for s in value.args[4].fields] if len(value.args) > 4 else [1]
    axes, begin = ([int(v.value) for v in t.fields] for t in (axes, begin))
    if axes != [len(shape) - 1] or prod(shape[:-1]) != 1 or steps != [1] or begin[0] < 0:
        return None
    return begin[0]


def _view(x: Any, element: int, variable: Any) -> Any:
    arguments = (x, tirx.IntImm("int64", element * _size(variable.ty, elements=False)))
    return relax.call_pure_packed(_VIEW, *arguments, ty_args=[variable.ty])


def _without_decode(module: Any) -> Any:
    """The other entry points, and the PrimFuncs that they call."""
    entries = {v: module[v] for v in module.get_global_vars() if isinstance(module[v], relax.Function)}
    entries = {v: f for v, f in entries.items() if v.name_hint != "decode"}
    called = {
        argument
        for function in entries.values()
        for binding in bindings(function)
        if isinstance(binding.value, relax.Call)
        for argument in binding.value.args
        if isinstance(argument, tvm.ir.GlobalVar)
    }
    return tvm.IRModule({**entries, **{v: module[v] for v in called}})


def _size(ty: Any, *, elements: bool = True) -> int:
    """Bytes of a tensor type (or of one element)."""
    dtype = str(ty.dtype)
    if dtype not in _BYTES:
        raise _NotFlatError(f"a tensor of {dtype}")
    return _BYTES[dtype] * (prod(_shape(ty)) if elements else 1)


def _shape(ty: Any) -> tuple[int, ...]:
    if any(not isinstance(extent, tirx.IntImm) for extent in ty.shape.values):
        raise _NotFlatError(f"a tensor of shape {ty.shape}")
    return tuple(int(extent) for extent in ty.shape.values)


class _Flattener:
    def __init__(
        self, module: Any, kernels: Mapping[str, TeamKernel], weights: Mapping[str, int], threads: int
    ) -> None:
        self.module, self.kernels, self.weights, self.threads = module, kernels, weights, threads
        self.operations: list[Operation] = []
        self.value_bytes: list[int] = []
        self.workers: dict[str, Any] = {}
        self.constants: list[Parameter] = []
        self._found: dict[Any, Any] = {}
        self._built: dict[Any, tuple[str, ...]] = {}

    def run(self, function: Any) -> Any:
        """Flatten the function and return the variable of its result."""
        count = int(function.attrs["num_input"])
        tokens, position, *state = function.params[:count]
        self._found[tokens] = Operand("input", 0)
        self._scalars = {position.ty.values[0].name: "position"}
        for index, variable in enumerate(state):
            self._found[variable] = Operand("state", index)
        for variable in function.params[count:]:
            self._found[variable] = Operand("weight", self.weights[variable.name])
        result = function.body.body
        source = _source(function, result)
        for binding in bindings(function):
            # The logits are an argument of the step, not a value that lies in its memory.
            self._found[binding.var] = self._bind(binding.value, binding.var.same_as(source))
        return result

    def add_best(self, logits: Any, lanes: int) -> int:
        """Append the search for the best token; returns the number of logits."""
        rows, vocab = _shape(logits.ty)
        operand = self._found[logits]
        if rows != 1 or operand != Operand("output", 0):
            raise _NotFlatError("the result is not a row of logits that a kernel writes")
        self._team(argmax_team_kernel(vocab, lanes), [operand], [Operand("output", 1)], (), elements=1)
        return vocab

    def _bind(self, value: Any, is_result: bool) -> Any:
        if isinstance(value, relax.Var):
            return self._found[value]
        if isinstance(value, relax.TupleGetItem):
            return self._found[value.tuple_value][value.index]
        if isinstance(value, relax.Tuple):
            return [self._found[field] for field in value.fields]
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op):
            if value.op.name in ("relax.call_tir", "relax.call_tir_inplace"):
                return self._call(value, is_result)
            if value.op.name == "relax.call_pure_packed" and str(value.args[0].global_symbol) == _VIEW:
                viewed, offset = self._found[value.args[1]], int(value.args[2])
                if offset and viewed.region != "value":
                    raise _NotFlatError("a part of a stored tensor")
                return viewed.at(offset)
            raise _NotFlatError(f"operator {value.op.name}")
        raise _NotFlatError(f"an expression of type {type(value).__name__}")

    def _call(self, value: Any, is_result: bool) -> Any:
        name, function = value.args[0].name_hint, self.module[value.args[0]]
        extra = list(value.args[2].values) if len(value.args) > 2 else []
        arguments = [*value.args[1].fields, *extra]
        operands = [self._operand(argument) for argument in arguments]
        types = list(value.ty_args[0].fields) if isinstance(value.ty_args[0], relax.TupleType) else [value.ty_args[0]]
        in_place = _in_place(value)
        results: list[Operand] = []
        for index, ty in enumerate(types):
            if index < len(in_place) and in_place[index] >= 0:
                overwritten = operands[in_place[index]]
                assert isinstance(overwritten, Operand)
                results.append(overwritten)
            else:
                results.append(Operand("output", 0) if is_result else self._value(_size(ty)))
        written = tuple(i for i in in_place if i >= 0)
        new = [r for index, r in enumerate(results) if index >= len(in_place) or in_place[index] < 0]
        if name in self.kernels:
            elements = sum(prod(_shape(ty)) for ty in types)
            self._team(self.kernels[name], operands, new, written, elements=elements)
        else:
            self._function(name, function, arguments, operands, new, written, types)
        return results if isinstance(value.ty_args[0], relax.TupleType) else results[0]

    def _operand(self, argument: Any) -> Operand | str | int:
        if isinstance(argument, GenericConst):
            return self._constant(argument)
        if isinstance(argument, relax.Var) and argument in self._found:
            found: Operand = self._found[argument]
            return found
        scalar = argument
        if isinstance(scalar, tirx.IntImm):
            return int(scalar)
        if isinstance(scalar, tirx.Var) and scalar.name in self._scalars:
            return self._scalars[scalar.name]
        raise _NotFlatError(f"an argument {argument}")

    def _constant(self, constant: Any) -> Operand:
        array = constant.value.numpy()
        for index, parameter in enumerate(self.constants):
            known = parameter.load()
            if known.dtype == array.dtype and np.array_equal(known, array):
                return Operand("weight", len(self.weights) + index)
        name = f"constant.{len(self.constants)}"
        self.constants.append(Parameter(name, array.shape, str(array.dtype), lambda: array))
        return Operand("weight", len(self.weights) + len(self.constants) - 1)

    def _value(self, nbytes: int) -> Operand:
        self.value_bytes.append(nbytes)
        return Operand("value", len(self.value_bytes) - 1)

    def _team(
        self,
        kernel: TeamKernel,
        operands: Sequence[Operand | str | int],
        results: Sequence[Operand],
        in_place: tuple[int, ...],
        *,
        elements: int,
    ) -> None:
        if kernel.name not in self._built:
            names = []
            for phase in range(len(kernel.phases)):
                names.append(f"{kernel.name}_phase{phase}")
                self.workers[names[-1]] = team_worker(kernel, phase, self.threads)
            self._built[kernel.name] = tuple(names)
        scratch = []
        for spec in kernel.scratch:
            per_slot = prod(extent for extent in spec.shape if extent != THREADS) * _BYTES[spec.dtype]
            scratch.append(self._value(-per_slot if THREADS in spec.shape else per_slot))
        self.operations.append(
            Operation(
                kernel.name,
                self._built[kernel.name],
                tuple(phase.split for phase in kernel.phases),
                tuple(operands),
                tuple(results),
                tuple(scratch),
                in_place,
                kernel.repeatable,
                elements,
            )
        )

    def _function(
        self,
        name: str,
        function: Any,
        arguments: Sequence[Any],
        operands: Sequence[Operand | str | int],
        results: Sequence[Operand],
        in_place: tuple[int, ...],
        types: Sequence[Any],
    ) -> None:
        new_types = types if not in_place else []
        shapes = [_shape(a.ty) if isinstance(o, Operand) else None for a, o in zip(arguments, operands, strict=True)]
        shapes += [_shape(ty) for ty in new_types]
        key = (name, tuple(shapes))
        if key not in self._built:
            worker = f"{name}_worker{len(self._built)}"
            self.workers[worker] = function_worker(function, shapes, worker)
            self._built[key] = (worker,)
        elements = sum(prod(_shape(ty)) for ty in new_types)
        self.operations.append(
            Operation(
                name,
                self._built[key],
                (False,),
                tuple(operands),
                tuple(results),
                in_place=in_place,
                repeatable=not in_place,
                elements=elements,
            )
        )


def _source(function: Any, variable: Any) -> Any:
    """The variable that ``variable`` is another name of."""
    renamed = {binding.var: binding.value for binding in bindings(function) if isinstance(binding.value, relax.Var)}
    while variable in renamed:
        variable = renamed[variable]
    return variable


def _in_place(value: Any) -> list[int]:
    """Per result, the argument that it overwrites, or -1; empty for a plain call."""
    if value.op.name != "relax.call_tir_inplace":
        return []
    return [int(index) for index in value.attrs.inplace_indices]
