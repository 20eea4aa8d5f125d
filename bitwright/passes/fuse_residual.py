"""Let a product add the residual, where it is for any number of tokens.

In: ``add_norm_quantized(x, packed_linear(...), gain)``, in either order, of a product that nothing else reads. Out:
``packed_linear`` with ``x`` as its last argument, and ``norm_quantized`` of the sum: a matrix less is written and read.
Decoding keeps the two: its rows stay in the nearest cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import bindings, functions, rewrite, static_rows, uses, with_event
from bitwright.program import Program


@dataclass(frozen=True)
class FuseResidual:
    """See the module's description."""

    name: str = "fuse_residual"

    def __call__(self, program: Program) -> Program:
        products = {norm: index for _, function in functions(program.module) for norm, index in _sums(function)}

        def visit(rewriter: Any, variable: Any, value: Any) -> Any:
            if variable in products:
                return _joined(rewriter, value, products[variable])
            if isinstance(value, relax.TupleGetItem) and ("sum", value.tuple_value) in rewriter.memo:
                return rewriter.memo["sum", value.tuple_value][value.index]
            return None

        module = rewrite(program.module, visit)
        return with_event(replace(program, module=module), self.name, sums=len(products))


def _sums(function: Any) -> Iterator[tuple[Any, int]]:
    """Variables bound to an addition and norm, with the operand that is a private product."""
    bound, counts = {b.var: b.value for b in bindings(function)}, uses(function)
    for variable, value in bound.items():
        if relax_ops.name_of(value) != "add_norm_quantized" or static_rows(value.args[0]):
            continue
        for index in (1, 0):
            operand = value.args[index]
            if relax_ops.name_of(bound.get(operand)) == "packed_linear" and counts[operand] == 1:
                yield variable, index
                break


def _joined(rewriter: Any, value: Any, index: int) -> Any:
    product, residual = rewriter.bound[value.args[index]], value.args[1 - index]
    attributes = {str(name): attribute for name, attribute in product.attrs.items()}
    total = rewriter.emit(relax_ops.call("packed_linear", [*product.args, residual], **attributes, has_residual=1))
    how = {name: value.attrs[name] for name in ("epsilon", "group", "terms")}
    norm = rewriter.emit(relax_ops.call("norm_quantized", [total, value.args[2]], kind="rms", **how))
    results = [total, *(rewriter.emit(relax.TupleGetItem(norm, index)) for index in range(len(norm.ty.fields)))]
    pair = rewriter.emit(relax.Tuple(results))
    rewriter.memo["sum", pair] = results
    return pair
