"""Fusion passes: Before and After as operator counts and structure, and the cases where they must not fire."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bitwright.codegen.isa import GENERIC
from bitwright.passes.annotate import Annotate
from bitwright.passes.base import operator_name
from bitwright.passes.fuse_add_norm import FuseAddNorm
from bitwright.passes.fuse_glu import FuseGlu
from bitwright.passes.fuse_linears import FuseLinears
from bitwright.passes.lower import Lower
from bitwright.passes.quantize import Quantize
from bitwright.plan import uniform_plan
from bitwright.program import Program
from bitwright.runs import parse_weights
from bitwright.scheme import LinearScheme
from tests.passes.ir import calls as all_calls
from tests.passes.ir import named, operators


def _annotated(program: Program, **changes: str) -> Program:
    plan = uniform_plan(program.sites, LinearScheme.parse("u4g32a8"), table=None, cache_bits=16, model="m", target="t")
    schemes = {**plan.schemes, **{k: parse_weights(v) for k, v in changes.items()}}
    return Annotate(replace(plan, schemes=schemes))(program)


def test_layers_with_one_input_and_one_scheme_become_one_product(prepare: Any) -> None:
    program = FuseLinears()(_annotated(prepare(layers=1)))
    shapes = [[int(d) for d in c.args[1].ty.shape.values] for c in named(program, "linear")]
    # 3 query heads and 1 + 1 key and value heads of 32; gate and up of 160; o, down and the tied head stay.
    assert shapes == [[160, 96], [96, 96], [320, 96], [96, 160], [101, 96]]
    assert program.events["fuse_linears"] == {"groups": 2}


def test_stacked_weights_are_the_rows_of_the_members(prepare: Any) -> None:
    before = _annotated(prepare(layers=1, bias=True))
    after = FuseLinears()(before)
    for suffix in ("weight.T", "bias"):
        names = [f"layers.0.{n}.{suffix}" for n in "qkv"]
        expected = np.concatenate([before.parameters[n].load() for n in names])
        np.testing.assert_array_equal(after.parameters["+".join(names)].load(), expected)


def test_different_schemes_become_runs_of_one_product(prepare: Any) -> None:
    changes = {"layer.0.k": "u8g32a16", "layer.0.mlp.0": "u4g32a8:64+c3g32a8:96", "layer.0.mlp.1": "c3g32a8"}
    program = FuseLinears()(_annotated(prepare(layers=1), **changes))
    found = [(int(c.args[1].ty.shape.values[0]), str(c.attrs["scheme"])) for c in named(program, "linear")]
    assert found == [
        (160, "u4g32a8:96+u8g32a16:32+u4g32a8:32"),
        (96, "u4g32a8"),
        (320, "u4g32a8:64+c3g32a8:96+c3g32a8:160"),  # each member keeps its codebook
        (96, "u4g32a8"),
        (101, "u4g32a8"),
    ]


def test_three_schemes_are_one_kernel_call(prepare: Any) -> None:
    program = _annotated(prepare(layers=1), **{"layer.0.k": "u6g32a8", "layer.0.v": "c3rowa8"})
    for phase in (FuseLinears(), Quantize(GENERIC), Lower(GENERIC, threads=2)):
        program = phase(program)
    for entry in ("prefill", "decode", "score"):
        linears = [name for name in _called(program, entry) if name.startswith("linear_")]
        mixed = [name for name in linears if "u4g32a8x96_u6g32a8x32_c3rowa8x32" in name]
        assert len(mixed) == 1 and len(linears) == 5  # q + k + v, o, gate + up, down, head


def _called(program: Program, entry: str) -> list[str]:
    """Names of the TensorIR functions that an entry point calls."""
    calls = [c for c in all_calls(program, entry) if operator_name(c) == "relax.call_tir"]
    return [str(call.args[0].name_hint) for call in calls]


def test_a_joined_gate_and_up_feed_one_gated_activation(prepare: Any) -> None:
    program = FuseGlu()(FuseLinears()(_annotated(prepare(layers=1))))
    (glu,) = named(program, "glu")
    assert str(glu.attrs["activation"]) == "silu" and len(glu.args) == 1
    assert operators(program)["relax.multiply"] == operators(program)["relax.sigmoid"] == 0


def test_separate_gate_and_up_are_two_operands(prepare: Any) -> None:
    program = FuseGlu()(_annotated(prepare(layers=1)))
    (glu,) = named(program, "glu")
    assert len(glu.args) == 2


def test_residual_additions_join_the_norm_that_follows(prepare: Any) -> None:
    before = _annotated(prepare(layers=2))
    after = FuseAddNorm()(before)
    # Per layer: before the MLP and before the next layer (or the final norm). The very first norm has no addition.
    assert operators(before)["relax.nn.rms_norm"] == 5 and operators(before)["relax.add"] == 4
    assert operators(after)["add_rms_norm"] == 4
    assert operators(after)["relax.nn.rms_norm"] == 1 and operators(after)["relax.add"] == 0


def test_fusion_leaves_the_input_program_alone(prepare: Any) -> None:
    program = _annotated(prepare(layers=1))
    before = program.module.script()
    FuseAddNorm()(FuseGlu()(FuseLinears()(program)))
    assert program.module.script() == before
