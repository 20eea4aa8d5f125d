"""The decode function becomes a list of kernel calls; what cannot stays in the VM and the report says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from bitwright import pipeline
from bitwright.codegen.isa import GENERIC
from bitwright.codegen.step.program import Operand
from bitwright.passes.annotate import Annotate
from bitwright.passes.base import bindings, functions
from bitwright.passes.flatten_decode import FlattenDecode
from bitwright.passes.fuse_add_norm import FuseAddNorm
from bitwright.passes.fuse_glu import FuseGlu
from bitwright.passes.fuse_linears import FuseLinears
from bitwright.passes.fuse_quantize import FuseQuantize
from bitwright.passes.lower import Lower
from bitwright.passes.quantize import Quantize
from bitwright.plan import uniform_plan
from bitwright.program import Program
from bitwright.runtime.session import load
from bitwright.scheme import LinearScheme
from tests.canonical_model import Shape, decoder
from tests.passes.ir import operators


def _lowered(program: Program, scheme: str = "u4g32a8") -> Program:
    plan = uniform_plan(program.sites, LinearScheme.parse(scheme), table=None, cache_bits=16, model="m", target="t")
    phases = (Annotate(plan), FuseLinears(), FuseGlu(), FuseAddNorm(), Quantize(GENERIC), FuseQuantize())
    for phase in (*phases, Lower(GENERIC, threads=2)):
        program = phase(program)
    return program


def _flat(program: Program) -> Program:
    return FlattenDecode(threads=2, lanes=8)(program)


def test_prompts_read_queries_keys_and_values_where_they_were_computed(prepare: Any) -> None:
    """Rotary kernels and caches take columns of the joined product; only decode, where slices are views, has any."""
    lowered = _lowered(prepare(layers=2))
    assert (
        operators(lowered, "prefill")["relax.strided_slice"] == operators(lowered, "score")["relax.strided_slice"] == 0
    )
    assert operators(lowered)["relax.strided_slice"] == 2 * 3


def test_decode_leaves_the_module_with_what_only_it_called(prepare: Any) -> None:
    before = _lowered(prepare(layers=2))
    after = _flat(before)
    assert "decode" in dict(functions(before.module)) and "decode" not in dict(functions(after.module))
    assert after.step is not None and not after.step_refused
    names = {v.name_hint for v in after.module.get_global_vars()}
    assert not any("attention" in name and "decode" in name for name in names)
    called = {
        argument.name_hint
        for _, function in functions(after.module)
        for binding in bindings(function)
        for argument in getattr(binding.value, "args", ())
        if isinstance(argument, tvm.ir.GlobalVar)
    }
    assert called == names - {"prefill", "score"}


def test_layers_share_workers_and_slices_cost_nothing(prepare: Any) -> None:
    steps = [_flat(_lowered(prepare(layers=layers))).step for layers in (2, 3)]
    assert steps[0] is not None and steps[1] is not None
    assert set(steps[0].workers) == set(steps[1].workers)
    per_layer = len(steps[1].program.operations) - len(steps[0].program.operations)
    # qkv, two rotaries, append, attention, quantize, o, norm, gate/up, glu, down, norm: no slices of qkv, no reshapes.
    assert per_layer == 12
    linears = [o for o in steps[0].program.operations if o.splits == (True,) and "linear" in o.name]
    qkv = linears[0].results[0]
    readers = [i for o in steps[0].program.operations for i in o.inputs if isinstance(i, Operand)]
    assert {i.offset for i in readers if (i.region, i.index) == (qkv.region, qkv.index)} == {0, 4 * 96, 4 * 128}


def test_weights_and_state_are_numbered_as_sessions_pass_them(prepare: Any) -> None:
    program = _flat(_lowered(prepare(layers=2)))
    assert program.step is not None
    operands = [o for op in program.step.program.operations for o in op.inputs if isinstance(o, Operand)]
    assert {o.index for o in operands if o.region == "state"} == {0, 1, 2, 3}
    assert {o.index for o in operands if o.region == "weight"} <= set(range(len(program.parameters)))
    positions = [s for op in program.step.program.operations for s in op.inputs if isinstance(s, str)]
    assert set(positions) == {"position"} and len(positions) == 5  # the rotary position, and append and attention twice


def test_an_encoder_is_left_alone(prepare: Any) -> None:
    program = replace(_lowered(prepare(layers=1)), kind="encoder")
    assert _flat(program) is program


def _with_foreign_call(program: Program) -> Program:
    """The result of decode goes through a packed function that nobody knows."""
    module = program.module.clone()
    function = module["decode"]
    builder = relax.BlockBuilder(
        tvm.IRModule({v: module[v] for v in module.get_global_vars() if v.name_hint != "decode"})
    )
    with builder.function("decode", function.params, attrs=dict(function.attrs.items())):
        with builder.dataflow():
            for binding in bindings(function):
                builder.emit_normalized(binding)
            result = function.body.body
            output = builder.emit_output(relax.call_pure_packed("test.unknown", result, ty_args=[result.ty]))
        builder.emit_func_output(output)
    return replace(program, module=builder.get())


def test_a_call_that_is_no_kernel_keeps_decode_in_the_vm(prepare: Any) -> None:
    program = _flat(_with_foreign_call(_lowered(prepare(layers=1))))
    assert program.step is None and "call_pure_packed" in program.step_refused
    assert "decode" in dict(functions(program.module))


def test_the_vm_still_decodes_when_a_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlattenDecode, "_flatten", _refuse)
    model = decoder(Shape(layers=1))
    artifact = pipeline.compile(model, tmp_path / "vm", context=64, scheme="f32")
    assert "in the VM" in (tmp_path / "vm" / "report.md").read_text() and artifact.manifest.interface.step is None
    monkeypatch.undo()
    pipeline.compile(model, tmp_path / "step", context=64, scheme="f32")
    ids = np.random.default_rng(0).integers(0, 101, 12).tolist()
    rows = []
    for name in ("vm", "step"):
        session = load(tmp_path / name)
        session.prefill(ids[:4])
        rows.append([session.decode(number) for number in ids[4:]])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def _refuse(_self: FlattenDecode, _program: Program) -> Any:
    from bitwright.passes import flatten_decode

    raise flatten_decode._NotFlatError("a test says no")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [Shape(), Shape(heads=9, kv_heads=3, width=288, vocab=211), Shape(window=8, bias=True)]
)
def test_decoding_equals_scoring(tmp_path: Path, shape: Shape, threads: int) -> None:
    # In caches of single precision, because prompts multiply narrower ones as integers, and decoding does not.
    pipeline.compile(decoder(shape), tmp_path / "a", context=64, scheme="u4g32a8", kv_bits=32)
    session = load(tmp_path / "a", threads=threads)
    ids = np.random.default_rng(1).integers(0, shape.vocab, 40).tolist()
    expected = session.logits(ids)
    session.reset()
    session.prefill(ids[:5])
    for position in range(5, 40):
        found = session.decode(ids[position])
        np.testing.assert_allclose(found, expected[position], atol=2e-3)
        assert session.module.decode_step is not None
        assert session.module.decode_step.best[0] == found.argmax()
