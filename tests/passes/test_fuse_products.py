"""Products of many tokens compute what follows them: gated activations and residual additions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bitwright.codegen.isa import GENERIC
from bitwright.passes.annotate import Annotate
from bitwright.passes.fuse_add_norm import FuseAddNorm
from bitwright.passes.fuse_glu import FuseGlu
from bitwright.passes.fuse_linears import FuseLinears
from bitwright.passes.fuse_packed_glu import FusePackedGlu
from bitwright.passes.fuse_quantize import FuseQuantize
from bitwright.passes.fuse_residual import FuseResidual
from bitwright.passes.quantize import Quantize
from bitwright.plan import uniform_plan
from bitwright.program import Program
from bitwright.scheme import LinearScheme
from tests.passes.ir import named, operators


def _ready(program: Program, **changes: str) -> Program:
    plan = uniform_plan(program.sites, LinearScheme.parse("u4g32a8"), table=None, cache_bits=16, model="m", target="t")
    schemes = {**plan.schemes, **{k: LinearScheme.parse(v) for k, v in changes.items()}}
    program = Annotate(replace(plan, schemes=schemes))(program)
    for phase in (FuseLinears(), FuseGlu(), FuseAddNorm(), Quantize(GENERIC), FuseQuantize()):
        program = phase(program)
    return program


def test_gate_and_up_compute_the_gated_activation_of_many_tokens(prepare: Any) -> None:
    before = _ready(prepare(layers=2))
    after = FusePackedGlu(GENERIC)(before)
    # A prompt reads only the last row of the last layer's gate; decoding reads one row everywhere.
    for entry, expected in (("score", 2), ("prefill", 1), ("decode", 0)):
        found, count = operators(after, entry), operators(before, entry)
        assert found["packed_glu"] == expected
        assert found["glu_quantized"] == count["glu_quantized"] - expected == 2 - expected
        assert found["packed_linear"] == count["packed_linear"] - expected
    (call,) = named(after, "packed_glu", "prefill")
    x8, scale, total = call.ty.fields
    assert [str(t.dtype) for t in (x8, scale, total)] == ["int8", "float32", "int32"]
    assert int(x8.shape.values[1]) == 160 and int(scale.shape.values[1]) == 5


def test_gates_stay_apart_where_there_is_no_kernel(prepare: Any) -> None:
    program = _ready(prepare(layers=1), **{"layer.0.mlp.1": "u3g32a8"})
    assert operators(FusePackedGlu(GENERIC)(program), "score")["packed_glu"] == 0


def test_products_add_the_residual_of_many_tokens(prepare: Any) -> None:
    before = _ready(prepare(layers=2))
    after = FuseResidual()(before)
    # After o and down of each layer.
    for entry, expected in (("score", 4), ("prefill", 2), ("decode", 0)):
        found = operators(after, entry)
        assert found["add_norm_quantized"] == 4 - expected
        assert sum("has_residual" in call.attrs for call in named(after, "packed_linear", entry)) == expected
        assert found["norm_quantized"] == operators(before, entry)["norm_quantized"] + expected
    for call in named(after, "packed_linear", "score"):
        if "has_residual" in call.attrs:
            assert int(call.args[-1].ty.shape.values[1]) == int(call.attrs["outputs"]) == 96
