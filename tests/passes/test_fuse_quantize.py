"""Activations are quantized where they are computed, unless something else reads them too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bitwright.codegen.isa import GENERIC
from bitwright.compiling.rotation import rotated
from bitwright.frontend.relax.module import import_model
from bitwright.passes.annotate import Annotate
from bitwright.passes.find_sites import FindSites
from bitwright.passes.fuse_add_norm import FuseAddNorm
from bitwright.passes.fuse_bias import FuseBias
from bitwright.passes.fuse_glu import FuseGlu
from bitwright.passes.fuse_linears import FuseLinears
from bitwright.passes.fuse_quantize import FuseQuantize
from bitwright.passes.quantize import Quantize
from bitwright.plan import uniform_plan
from bitwright.program import Program
from bitwright.scheme import LinearScheme
from tests.canonical_model import Shape, decoder
from tests.passes.ir import named, operators


def _quantized(program: Program, **changes: str) -> Program:
    plan = uniform_plan(program.sites, LinearScheme.parse("u4g32a8"), table=None, cache_bits=16, model="m", target="t")
    schemes = {**plan.schemes, **{k: LinearScheme.parse(v) for k, v in changes.items()}}
    program = Annotate(replace(plan, schemes=schemes))(program)
    for phase in (FuseLinears(), FuseGlu(), FuseAddNorm(), Quantize(GENERIC)):
        program = phase(program)
    return program


def test_norms_and_gates_quantize_their_own_results(prepare: Any) -> None:
    before = _quantized(prepare(layers=1))
    after = FuseQuantize()(before)
    # Before qkv, o, gate/up, down and the head; only attention's result (before o) has no kernel that quantizes it.
    assert operators(before)["quantize_activation"] == 5 and operators(after)["quantize_activation"] == 1
    found = operators(after)
    assert (found["norm_quantized"], found["add_norm_quantized"], found["glu_quantized"]) == (1, 2, 1)
    assert found["relax.nn.rms_norm"] == found["add_rms_norm"] == found["glu"] == 0


def test_shapes_and_readers_stay_right(prepare: Any) -> None:
    program = FuseQuantize()(_quantized(prepare(layers=1)))
    for linear in named(program, "packed_linear"):
        x8, scale, total = linear.args[:3]
        assert [str(v.ty.dtype) for v in (x8, scale, total)] == ["int8", "float32", "int32"]
        assert int(x8.ty.shape.values[1]) == int(linear.attrs["inputs"]) == 32 * int(scale.ty.shape.values[1])


def test_an_activation_that_a_float_layer_reads_too_stays_float(prepare: Any) -> None:
    program = FuseQuantize()(_quantized(prepare(layers=1), **{"layer.0.v": "u4g32a16"}))
    # The first norm feeds q and k as int8 and v as float: it is not fused, the others are.
    assert operators(program)["relax.nn.rms_norm"] == 1 and operators(program)["norm_quantized"] == 0
    assert operators(program)["add_norm_quantized"] == 2


def test_one_activation_is_quantized_once_per_group_size(prepare: Any) -> None:
    program = _quantized(prepare(layers=1), **{"layer.0.k": "u8rowa8", "layer.0.v": "u3g32a8"})
    groups = [int(c.attrs["group"]) for c in named(program, "quantize_activation")]
    assert groups.count(0) == 1 and groups.count(32) == 5


def test_a_rotation_quantizes_its_own_result() -> None:
    model = rotated(decoder(Shape(layers=1)), ["residual", "hidden"]).model
    before = _quantized(FindSites()(FuseBias()(import_model(model, capacity=64))))
    found = operators(FuseQuantize()(before))
    assert operators(before)["rotate"] == 3
    # Rows from the table and before the last norm stay floats; those before down are read as integers alone.
    assert (found["rotate"], found["rotate_quantized"], found["glu_quantized"]) == (2, 1, 0)
    (fused,) = named(FuseQuantize()(before), "rotate_quantized")
    assert {str(name): int(value) for name, value in fused.attrs.items()} == {
        "blocks": 1, "order": 20, "power": 8, "transposed": 0, "group": 32, "terms": 1,
    }  # fmt: skip
