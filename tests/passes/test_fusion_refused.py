"""Where fusion must not fire, or only in part: look-alikes, shared operands, inputs that differ by entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitwright.frontend.model import ImportedModel
from bitwright.frontend.relax.module import import_model
from bitwright.passes.annotate import Annotate
from bitwright.passes.find_sites import FindSites
from bitwright.passes.fuse_add_norm import FuseAddNorm
from bitwright.passes.fuse_bias import FuseBias
from bitwright.passes.fuse_glu import FuseGlu
from bitwright.passes.fuse_linears import FuseLinears
from bitwright.plan import uniform_plan
from bitwright.program import Program
from bitwright.scheme import LinearScheme
from tests import unusual_models
from tests.passes.ir import named, operators


def _imported(build: Callable[[], ImportedModel]) -> Program:
    return import_model(build(), capacity=64)


def _annotated(build: Callable[[], ImportedModel]) -> Program:
    program = FindSites()(FuseBias()(_imported(build)))
    scheme = LinearScheme.parse("u4g32a8")
    return Annotate(uniform_plan(program.sites, scheme, table=None, cache_bits=16, model="", target=""))(program)


def _rows(program: Program, entry: str) -> list[int]:
    return [int(call.args[1].ty.shape.values[0]) for call in named(program, "linear", entry)]


def test_layers_that_prefill_feeds_differently_are_joined_apart() -> None:
    after = FuseLinears()(_annotated(unusual_models.parallel_blocks))
    # Layer 0: q, k, v, gate and up of 96 + 32 + 32 + 160 + 160 rows in one. Layer 1: q, k, v see all tokens, gate and
    # up only the last. Every entry point has the same weights: they are stored once.
    for entry in ("prefill", "decode", "score"):
        assert _rows(after, entry) == [480, 96, 96, 160, 96, 320, 96, 101]


def test_a_weight_with_two_inputs_joins_none_of_its_neighbours() -> None:
    after = FuseLinears()(_annotated(unusual_models.shared_weights))
    # Per layer: q + v, the shared k alone, o, gate + up, down; then the head.
    assert _rows(after, "decode") == [*[128, 32, 96, 320, 96] * 2, 101]


def test_weights_of_a_repeated_layer_are_stacked_once() -> None:
    after = FuseLinears()(_annotated(unusual_models.looped_layer))
    assert _rows(after, "decode") == [*[160, 96] * 3, 101]
    assert after.events["fuse_linears"] == {"groups": 1}


def test_members_without_a_bias_stay_apart_from_those_with_one() -> None:
    after = FuseLinears()(_annotated(unusual_models.biases_on_some))
    assert _rows(after, "decode")[:2] == [128, 32]  # q + v, k


def test_a_product_that_is_also_read_without_its_bias_keeps_it_outside() -> None:
    before = _imported(unusual_models.biases_on_some)
    after = FuseBias()(before)
    assert after.events["fuse_bias"]["biases"] == 3 * 3  # q, v and o in three entry points
    assert operators(after)["linear"] == operators(before)["linear"]
    # Two residual sums and the gate's bias remain.
    assert operators(before)["relax.add"] == 6 and operators(after)["relax.add"] == 3


def test_a_learned_row_is_no_gate() -> None:
    after = FuseGlu()(_annotated(unusual_models.scaled_activation))
    assert named(after, "glu", "score") == [] and operators(after, "score")["relax.multiply"] == 2


def test_up_before_gate_are_two_operands() -> None:
    (glu,) = named(FuseGlu()(_annotated(unusual_models.packed_projections)), "glu")
    assert len(glu.args) == 2


def _sum_with_two_norms() -> ImportedModel:
    b = unusual_models.Unusual()
    b.add(b.attention_layer("0", b.norm("norm1", b.x)))
    left, right = b.norm("left", b.x), b.norm("right", b.x)
    b.add(b.mlp("0", left), b.mlp("1", right))
    return b.finish()


def _computed_gain() -> ImportedModel:
    """The second gain is 1 + w, computed in the graph after the sum that is normalised."""
    b = unusual_models.Unusual()
    b.add(b.attention_layer("0", b.norm("norm1", b.x)))
    one = b.random_constant("one", unusual_models.WIDTH)
    gain = b.node("Add", [one, b.random_constant("w", unusual_models.WIDTH)])
    b.add(b.mlp("0", b.node("RMSNormalization", [b.x, gain], axis=-1, epsilon=1e-5)))
    return b.finish()


def _fused_norms(build: Callable[[], ImportedModel]) -> Any:
    return operators(FuseAddNorm()(_annotated(build)))


def test_a_sum_that_two_norms_read_is_left_alone() -> None:
    found = _fused_norms(_sum_with_two_norms)
    assert found["add_rms_norm"] == 1 and found["relax.nn.rms_norm"] == 3  # only the sum before the last norm


def test_a_gain_that_is_computed_after_the_sum_is_left_alone() -> None:
    found = _fused_norms(_computed_gain)
    assert found["add_rms_norm"] == 1 and found["relax.nn.rms_norm"] == 2
