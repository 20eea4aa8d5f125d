"""Write the plan into the IR: after this pass every site's call carries its scheme, and nothing reads the plan any
more.

In: calls with ``site`` attributes. Out: ``scheme`` on ``linear`` and ``embedding`` (with rows where a matrix is cut
into runs: ``u4g32a8:384+u3g32a8:192``), ``k_scheme`` and ``v_scheme`` on ``attention``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bitwright import relax_ops
from bitwright.passes.base import rewrite
from bitwright.plan import Plan
from bitwright.program import Program


@dataclass(frozen=True)
class Annotate:
    """See the module's description.

    Attributes:
        plan: checked against the program's sites; InputError if it misses one or names another.
    """

    plan: Plan
    name: str = "annotate"

    def __call__(self, program: Program) -> Program:
        self.plan.check_sites(program.sites)
        schemes = self.plan.schemes

        def visit(_rewriter: Any, _variable: Any, value: Any) -> Any:
            kind = relax_ops.name_of(value)
            if kind in ("linear", "embedding"):
                return relax_ops.with_attributes(value, scheme=schemes[str(value.attrs["site"])].name)
            if kind == "attention":
                layer = int(value.attrs["layer"])
                k, v = (schemes[f"layer.{layer}.{letter}_cache"].name for letter in "kv")
                return relax_ops.with_attributes(value, k_scheme=k, v_scheme=v)
            return None

        return replace(program, module=rewrite(program.module, visit), plan=self.plan)
