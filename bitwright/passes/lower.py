"""Lower bitwright's operators, and the Relax operators there is a kernel for, to calls of TensorIR functions.

In: the output of ``quantize`` and the fusion passes. Out: ``call_tir`` and ``call_tir_inplace`` (caches) on
PrimFuncs that are
part of the module; operators without a kernel of ours stay for TVM's legalisation and are counted in the report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from bitwright import relax_ops
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.schedule import Schedules, default_schedule
from bitwright.codegen.team import TeamKernel
from bitwright.passes.base import rewrite, with_event
from bitwright.passes.lowerings import LOWERINGS, RELAX_LOWERINGS, Lowering
from bitwright.program import Program
from bitwright.scheme import CacheScheme

# Relax operators that cost nothing at run time or are views.
_FREE = ("relax.reshape",)


@dataclass(frozen=True)
class Lower:
    """See the module's description.

    Attributes:
        isa: what kernels are generated for.
        threads: how many threads long work is divided among.
        schedules: chooses the knobs of linear kernels.
    """

    isa: Isa
    threads: int
    schedules: Schedules = default_schedule
    name: str = "lower"

    def __call__(self, program: Program) -> Program:
        kernels: dict[Any, Any] = {}
        teams: dict[str, TeamKernel] = {}
        fallbacks: set[tuple[str, str]] = set()
        cache_dtypes = _cache_dtypes(program)

        def retype(variable: Any) -> Any:
            dtype = cache_dtypes.get(variable.name)
            if dtype is None:
                return variable
            return relax.Var(variable.name, relax.TensorType(list(variable.ty.shape.values), dtype))

        def visit(rewriter: Any, variable: Any, value: Any) -> Any:
            lowering = Lowering(rewriter, value, self.isa, self.threads, kernels, teams, self.schedules)
            name = relax_ops.name_of(value)
            if name is not None:
                return LOWERINGS[name](lowering)
            if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op):
                return None
            operator = str(value.op.name)
            result = RELAX_LOWERINGS[operator](lowering) if operator in RELAX_LOWERINGS else None
            if result is None and operator not in _FREE:
                fallbacks.add((operator, variable.name))
            return result

        module = rewrite(program.module, visit, retype=retype)
        lowered = replace(program, module=module, team_kernels=teams)
        return with_event(lowered, self.name, kernels=len(kernels), left_to_tvm=len(fallbacks))


def _cache_dtypes(program: Program) -> dict[str, str]:
    """dtype of each state variable, from the cache schemes of the sites."""
    if program.plan is None:
        return {}
    found = {}
    for site in program.sites:
        scheme = program.plan.schemes[site.name]
        if isinstance(scheme, CacheScheme):
            layer = site.name.split(".")[1]
            found[f"{site.kind}.{layer}"] = f"float{scheme.bits}"
    return found
