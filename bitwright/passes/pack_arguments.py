"""Give every entry point the signature that sessions call.

In: ``(tokens..., position, k_cache.0, v_cache.0, ..., parameter variables)``. Out: ``(tokens..., position, state,
weights)``
(encoder: ``(tokens..., weights)``), state and weights being tuples in the order of ``program.parameters``: every entry
point takes the same two objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from bitwright.passes.base import bindings, functions
from bitwright.program import Program


@dataclass(frozen=True)
class PackArguments:
    """See the module's description.

    Attributes:
        chunk: most tokens one call takes; lets memory be planned ahead.
    """

    chunk: int
    name: str = "pack_arguments"

    def __call__(self, program: Program) -> Program:
        others = {v: program.module[v] for v in program.module.get_global_vars()}
        others = {v: f for v, f in others.items() if not isinstance(f, relax.Function)}
        builder = relax.BlockBuilder(tvm.IRModule(others))
        types = {name: relax.TensorType(list(p.shape), p.dtype) for name, p in program.parameters.items()}
        for name, function in functions(program.module):
            _repack(builder, name, function, types, self.chunk)
        return replace(program, module=builder.get())


def _repack(builder: Any, name: str, function: Any, types: dict[str, Any], chunk: int) -> None:
    count = int(function.attrs["num_input"])
    inputs = list(function.params[:count])
    state = [v for v in inputs if v.name.startswith(("k_cache.", "v_cache."))]
    plain = inputs[: count - len(state)]
    weights_tuple = relax.Var("weights", relax.TupleType(list(types.values())))
    state_tuple = relax.Var("state", relax.TupleType([v.ty for v in state]))
    arguments = [*plain, *([state_tuple] if state else []), weights_tuple]
    order = {parameter: i for i, parameter in enumerate(types)}
    attrs = {"tir_var_upper_bound": {"n": chunk}}
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
    return {v: builder.emit(relax.TupleGetItem(whole, i)) for v, i in zip(variables, indices, strict=True)}


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
