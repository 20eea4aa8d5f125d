"""What tests of training share: a plan for a model, in which one matrix may be cut into runs."""

from __future__ import annotations

from dataclasses import replace

from bitwright import pipeline
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options
from bitwright.plan import Plan
from bitwright.program import Program
from bitwright.runs import parse_weights
from bitwright.target import Target

MIXED = "u2g32a8:64+c3g32a8:96"


def planned(model: ImportedModel, options: Options, site: str | None = None) -> tuple[Program, Plan]:
    """The program and plan of a compilation; ``site``: runs for a matrix of 160 rows."""
    plan, program = pipeline.plan_and_program(model, options, Target.parse("native"), lambda _: None)
    if site is None:
        return program, plan
    wide = next(s.name for s in program.sites if s.kind == "linear" and s.shape[0] == 160)
    return program, replace(plan, schemes={**plan.schemes, wide: parse_weights(site)})
