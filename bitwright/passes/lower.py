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
from bitwright.codegen.linear.tile_functions import TileFunctions
from bitwright.codegen.team import TeamKernel
from bitwright.passes.base import rewrite, with_event
from bitwright.passes.caches import cache_specs
from bitwright.passes.lowerings import LOWERINGS, RELAX_LOWERINGS, Lowering
from bitwright.program import Program

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
        tiles = TileFunctions()
        fallbacks: set[tuple[str, str]] = set()
        caches = cache_specs(program, program.plan)
        stored = {f"{t.name}.{i}": t for i, cache in enumerate(caches) for t in (cache.keys, cache.values)}

        def retype(variable: Any) -> Any:
            tensor = stored.get(variable.name)
            if tensor is None:
                return variable
            return relax.Var(variable.name, relax.TensorType(list(tensor.shape), tensor.dtype))

        def visit(rewriter: Any, variable: Any, value: Any) -> Any:
            lowering = Lowering(rewriter, value, self.isa, self.threads, caches, kernels, teams, self.schedules, tiles)
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
        functions = tiles.functions()
        lowered = replace(program, module=module, team_kernels=teams, tile_functions=functions)
        return with_event(
            lowered, self.name, kernels=len(kernels), tile_functions=len(functions), left_to_tvm=len(fallbacks)
        )
