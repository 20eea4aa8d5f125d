"""Give every entry point the signature that sessions call.

In: ``(tokens..., position, k_cache.0, v_cache.0, ..., parameter variables)``. Out: ``(tokens..., position, state,
weights)``
(encoder: ``(tokens..., weights)``), state and weights being tuples in the order of ``program.parameters``: every entry
point takes the same two objects. The tuples are untyped: the VM would check every tensor of a typed one at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax, tirx

from bitwright.passes.base import bindings, functions
from bitwright.program import Program


@dataclass(frozen=True)
class PackArguments:
    """See the module's description.

    Attributes:
        chunk: most tokens one call of a decoder takes (an encoder takes the whole text at once); lets memory be
            planned ahead.
    """

    chunk: int
    name: str = "pack_arguments"

    def __call__(self, program: Program) -> Program:
        others = {v: program.module[v] for v in program.module.get_global_vars()}
        others = {v: f for v, f in others.items() if not isinstance(f, relax.Function)}
        builder = relax.BlockBuilder(tvm.IRModule(others))
        longest = program.capacity if program.kind == "encoder" else min(self.chunk, program.capacity)
        order = {name: i for i, name in enumerate(program.parameters)}
        for name, function in functions(program.module):
            _repack(builder, name, function, order, longest)
        return replace(program, module=builder.get())


def _repack(builder: Any, name: str, function: Any, order: dict[str, int], longest: int) -> None:
    count = int(function.attrs["num_input"])
    inputs = list(function.params[:count])
    state = [v for v in inputs if v.name.startswith(("k_cache.", "v_cache."))]
    plain = inputs[: count - len(state)]
    weights_tuple, state_tuple = (relax.Var(name, relax.ObjectType()) for name in ("weights", "state"))
    arguments = [*plain, *([state_tuple] if state else []), weights_tuple]
    attrs = {"tir_var_upper_bound": {"n": longest}}
    with builder.function(name, attrs=attrs, private=False):
        with builder.dataflow():
            mapping = _unpack(builder, state_tuple, state, range(len(state)))
            used = list(function.params[count:])
            mapping |= _unpack(builder, weights_tuple, used, [order[v.name] for v in used])
            for binding in bindings(function):
                value = _substitute(binding.value, mapping)
                mapping[binding.var] = value if isinstance(value, relax.Var) else builder.emit(value)
            output = builder.emit_output(mapping[function.body.body])
        builder.emit_func_output(output, params=arguments)


def _unpack(builder: Any, whole: Any, variables: Sequence[Any], indices: Sequence[int]) -> dict[Any, Any]:
    def element(variable: Any, index: int) -> Any:
        position = tirx.IntImm("int64", index)
        return relax.call_pure_packed("vm.builtin.tuple_getitem", whole, position, ty_args=[variable.ty])

    return {v: builder.emit(element(v, i)) for v, i in zip(variables, indices, strict=True)}


def _substitute(value: Any, mapping: dict[Any, Any]) -> Any:
    if isinstance(value, relax.Var):
        return mapping.get(value, value)
    if isinstance(value, relax.Call):
        return relax.Call(
            value.op, [_substitute(a, mapping) for a in value.args], attrs=value.attrs, ty_args=value.ty_args
        )
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(_substitute(value.tuple_value, mapping), value.index)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_substitute(f, mapping) for f in value.fields])
    return value
