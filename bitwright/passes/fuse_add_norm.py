"""Join a residual addition with the RMS normalisation that reads it.

In: ``s = add(a, b); y = rms_norm(s, gain)`` over two-dimensional values of one shape. Out: ``(s, y) =
add_rms_norm(a, b, gain)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from bitwright import relax_ops
from bitwright.passes.base import bindings, functions, operands, operator_name, rewrite, same_matrix, with_event
from bitwright.program import Program


@dataclass(frozen=True)
class FuseAddNorm:
    """See the module's description."""

    name: str = "fuse_add_norm"

    def __call__(self, program: Program) -> Program:
        gains: dict[Any, Any] = {}
        for _, function in functions(program.module):
            gains.update(_normalised_sums(function))
        fused = 0

        def visit(rewriter: Any, variable: Any, value: Any) -> Any:
            nonlocal fused
            if variable in gains:
                gain, epsilon = gains[variable]
                pair = rewriter.emit(
                    relax_ops.call("add_rms_norm", [*value.args, rewriter.operand(gain)], epsilon=epsilon)
                )
                total = rewriter.emit(relax.TupleGetItem(pair, 0))
                rewriter.memo[("norm", total)] = rewriter.emit(relax.TupleGetItem(pair, 1))
                fused += 1
                return total
            if operator_name(value) == "relax.nn.rms_norm":
                return rewriter.memo.get(("norm", value.args[0]))
            return None

        return with_event(replace(program, module=rewrite(program.module, visit)), self.name, norms=fused)


def _normalised_sums(function: Any) -> dict[Any, tuple[Any, float]]:
    """Variables bound to a sum that one RMS norm reads, with its gain (known before the sum is) and epsilon."""
    inner = {b.var for b in bindings(function)}
    sums = {b.var for b in bindings(function) if operator_name(b.value) == "relax.add" and same_matrix(*b.value.args)}
    norms: dict[Any, list[Any]] = {}
    for binding in bindings(function):
        if operator_name(binding.value) == "relax.nn.rms_norm" and operands(binding.value)[0] in sums:
            norms.setdefault(binding.value.args[0], []).append(binding.value)
    return {
        s: (n[0].args[1], float(n[0].attrs.epsilon))
        for s, n in norms.items()
        if len(n) == 1 and n[0].args[1] not in inner
    }
