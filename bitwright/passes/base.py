"""What a pass is: a frozen dataclass that turns one :class:`~bitwright.program.Program` into another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, Protocol

import tvm
import tvm_ffi
from tvm import relax, tirx

from bitwright.program import Program


class Pass(Protocol):
    """A named transformation. Its dataclass fields are its options."""

    @property
    def name(self) -> str: ...

    def __call__(self, program: Program) -> Program: ...


def bindings(function: Any) -> Iterator[Any]:
    """The function's bindings in order."""
    for block in function.body.blocks:
        yield from block.bindings


def functions(module: Any) -> Iterator[tuple[str, Any]]:
    """(name, function) of each Relax function, in name order."""
    for variable in sorted(module.get_global_vars(), key=lambda v: v.name_hint):
        if isinstance(module[variable], relax.Function):
            yield variable.name_hint, module[variable]


def with_event(program: Program, pass_name: str, **counts: int) -> Program:
    """The program with counts added to the report."""
    if not any(counts.values()):
        return program
    return replace(program, events={**program.events, pass_name: dict(counts)})


class Rewriter:
    """Rebuild a function binding by binding.

    ``visit(rewriter, variable, value)`` gets each binding with the new operands already in place. It returns the
    replacement
    expression (emitted by itself or not), or None to keep the binding as it is.

    Attributes:
        builder: block builder of the module under construction, inside a data-flow block.
        arguments: the function's first ``num_input`` variables (inputs and state), possibly of another type than
        before.
        parameters: name to variable; variables asked for with :meth:`parameter` are created on demand.
        bound: what each variable of the new function is bound to.
        memo: for visitors: what they want to find again later in the same function.
    """

    def __init__(self, function: Any, builder: Any, retype: Callable[[Any], Any]) -> None:
        self.function = function
        self.builder = builder
        count = int(function.attrs["num_input"])
        self.arguments = [retype(v) for v in function.params[:count]]
        self._old = {v.name: v for v in function.params[count:]}
        self.parameters: dict[str, Any] = {}
        self.bound: dict[Any, Any] = {}
        self.memo: dict[Any, Any] = {}
        self._map: dict[Any, Any] = dict(zip(function.params[:count], self.arguments, strict=True))

    def parameter(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        """The variable of a (new) parameter."""
        if name not in self.parameters:
            self.parameters[name] = relax.Var(name, relax.TensorType(list(shape), dtype))
        return self.parameters[name]

    def emit(self, expr: Any) -> Any:
        """Bind ``expr`` to a new variable; a variable is returned as it is."""
        if isinstance(expr, relax.Var):
            return expr
        variable = self.builder.emit(expr)
        self.bound[variable] = expr
        return variable

    def operand(self, expr: Any) -> Any:
        """What a variable of the old function is in the new one."""
        if not isinstance(expr, relax.Var):
            return expr
        if expr in self._map:
            return self._map[expr]
        if self._old.get(expr.name) is not None and self._old[expr.name].same_as(expr):
            return self.parameters.setdefault(expr.name, expr)
        return expr

    def substitute(self, value: Any) -> Any:
        """``value`` with its direct operands replaced."""
        if isinstance(value, relax.Call):
            changed = [self._substitute_argument(a) for a in value.args]
            return relax.Call(value.op, changed, attrs=value.attrs, ty_args=value.ty_args)
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.operand(value.tuple_value), value.index)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._substitute_argument(f) for f in value.fields])
        return self.operand(value)

    def _substitute_argument(self, argument: Any) -> Any:
        if isinstance(argument, relax.Tuple):
            return relax.Tuple([self._substitute_argument(f) for f in argument.fields])
        return self.operand(argument)

    def run(self, name: str, visit: Callable[[Rewriter, Any, Any], Any]) -> None:
        """Add the rebuilt function to the builder's module, without bindings and parameters that nothing reads."""
        live = _live(self.function)
        attrs = {str(k): v for k, v in self.function.attrs.items()}
        with self.builder.function(name, attrs=attrs, private=False):
            with self.builder.dataflow():
                for binding in bindings(self.function):
                    if binding.var not in live:
                        continue
                    value = self.substitute(binding.value)
                    replacement = visit(self, binding.var, value)
                    self._map[binding.var] = self.emit(value if replacement is None else replacement)
                output = self.builder.emit_output(self.operand(self.function.body.body))
            self.builder.emit_func_output(output, params=[*self.arguments, *self.parameters.values()])


def operands(value: Any) -> list[Any]:
    """The variables an expression reads directly."""
    if isinstance(value, relax.Var):
        return [value]
    if isinstance(value, relax.TupleGetItem):
        return operands(value.tuple_value)
    parts = value.args if isinstance(value, relax.Call) else value.fields if isinstance(value, relax.Tuple) else []
    return [variable for part in parts for variable in operands(part)]


def uses(function: Any) -> Counter[Any]:
    """How often each variable is read."""
    counts: Counter[Any] = Counter(v for b in bindings(function) for v in operands(b.value))
    counts[function.body.body] += 1
    return counts


def operator_name(value: Any) -> str:
    """Full name of the operator that ``value`` calls; empty if it is no operator call."""
    return str(value.op.name) if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""


def same_matrix(left: Any, right: Any) -> bool:
    """Are both variables two-dimensional, of one shape? (One row that is broadcast to n tokens has another.)"""
    types = [v.ty for v in (left, right) if isinstance(v, relax.Var) and isinstance(v.ty, relax.TensorType)]
    if len(types) != 2 or any(len(ty.shape.values) != 2 for ty in types):
        return False
    return bool(tvm_ffi.structural_equal(*(ty.shape for ty in types)))


def static_rows(value: Any) -> Literal[1] | None:
    """1 if the value has exactly one row, else None."""
    rows = value.ty.shape.values[0]
    return 1 if isinstance(rows, tirx.IntImm) and int(rows) == 1 else None


def column_slice(bound: dict[Any, Any], variable: Any) -> tuple[Any, int] | None:
    """(source, first column) of a slice of whole rows' columns, by ``strided_slice`` or as a part of ``split``."""
    value: Any = bound.get(variable)
    if operator_name(value) == "relax.strided_slice":
        axes, begin, steps = (
            list(value.args[i]) if len(value.args) > i else [tirx.IntImm("int64", 1)] for i in (1, 2, 4)
        )
        if len(axes) != 1 or not all(isinstance(extent, tirx.IntImm) for extent in (*axes, *begin, *steps)):
            return None
        along = int(axes[0]) in (1, -1) and int(steps[0]) == 1 and int(begin[0]) >= 0
        return (value.args[0], int(begin[0])) if along else None
    if not isinstance(value, relax.TupleGetItem):
        return None
    split: Any = bound.get(value.tuple_value)
    if operator_name(split) != "relax.split" or int(split.attrs.axis) not in (1, -1):
        return None
    widths = [int(part.shape.values[1]) for part in value.tuple_value.ty.fields]
    return split.args[0], sum(widths[: value.index])


def _live(function: Any) -> set[Any]:
    live = {function.body.body}
    for binding in reversed(list(bindings(function))):
        if binding.var in live:
            live.update(operands(binding.value))
    return live


Visit = Callable[[Rewriter, Any, Any], Any]


def rewrite(module: Any, visit: Visit, *, retype: Callable[[Any], Any] = lambda variable: variable) -> Any:
    """Every Relax function of the module, rebuilt with ``visit``; other functions are kept.

    Args:
        retype: gives the new variable of an input or state variable.
    """
    return _rebuild(_rebuild(module, visit, retype), _keep, lambda variable: variable)


def _rebuild(module: Any, visit: Visit, retype: Callable[[Any], Any]) -> Any:
    others = {v: module[v] for v in module.get_global_vars() if not isinstance(module[v], relax.Function)}
    builder = relax.BlockBuilder(tvm.IRModule(others))
    for name, function in functions(module):
        Rewriter(function, builder, retype).run(name, visit)
    return builder.get()


def _keep(_rewriter: Rewriter, _variable: Any, _value: Any) -> None:
    return None
