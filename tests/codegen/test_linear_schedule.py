"""Knobs: what is refused, what each kernel offers, and that no value changes a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitwright.codegen.isa import AVX2, AVX512VNNI, Isa, select_isa, tuned_for
from bitwright.codegen.linear import LinearSchedule, LinearSpec, build_linear, default_schedule
from bitwright.codegen.linear.schedule import decode_space, fixed
from bitwright.codegen.reference.linear import quantize_activation
from bitwright.errors import UsageError
from bitwright.scheme import LinearScheme

from .linear_case import host_features, random_layer, tensor


@pytest.mark.parametrize(
    "knobs", [{"prefetch": -64}, {"prefetch": 100}, {"prefetch_level": 3}, {"chain": 0}, {"span": 48}, {"span": 0}]
)
def test_impossible_knobs_are_refused(knobs: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is no schedule"):
        LinearSchedule(**knobs)


def test_a_span_divides_the_group() -> None:
    assert [LinearSchedule(span=128).fitting_span(group) for group in (32, 64, 128, 576)] == [32, 64, 128, 96]
    assert LinearSchedule(span=32).fitting_span(576) == 32


def test_spaces_hold_the_knobs_that_matter() -> None:
    def knobs(scheme: str, isa: Isa = AVX512VNNI) -> set[str]:
        return set(decode_space(LinearSpec(128, 128, LinearScheme.parse(scheme), rows=1), isa))

    assert knobs("f16") == set()
    assert knobs("u4g32a8") == knobs("u4g32a16") == {"prefetch", "prefetch_level", "chain", "ordered"}
    assert knobs("u4g128a8") == {"prefetch", "prefetch_level", "chain", "ordered", "span"}
    assert knobs("u2g32a16") == {"prefetch", "prefetch_level", "chain"}, "32 sums do not fit beside operands"
    assert knobs("u4g128a8", AVX2) == {"prefetch", "prefetch_level", "ordered", "span"}


@pytest.mark.parametrize("cpu", ["znver4", "", "znver5"])
def test_order_replaces_prefetches_where_it_was_measured(cpu: str) -> None:
    """Prefetches belong in the nearest cache of a Zen 5, on which kernels were tuned with them."""
    spec = LinearSpec(64, 128, LinearScheme.parse("u5g32a8"), rows=1)
    schedule = default_schedule(spec, tuned_for(AVX512VNNI, cpu))
    assert (schedule.ordered, schedule.prefetch > 0) == ((False, True) if cpu == "znver5" else (True, False))


@pytest.mark.parametrize("name", ["u2g32a8", "u4g32a8", "c5g64a8"])
def test_without_vnni_memory_is_asked_for_as_well(name: str) -> None:
    schedule = default_schedule(LinearSpec(64, 128, LinearScheme.parse(name), rows=1), tuned_for(AVX2, "znver4"))
    assert (schedule.prefetch, schedule.prefetch_level) == (4096, 1)
    assert schedule.ordered == (name != "u2g32a8")


@pytest.mark.parametrize("name", ["u3g128za8", "u5g64a8", "c5g64a8", "u8g128a16", "u2g128a8", "u6rowza8"])
def test_no_knob_changes_a_result(name: str) -> None:
    from bitwright.codegen.builder import build, read_host_target

    isa = select_isa(host_features())
    spec = LinearSpec(72, 256, LinearScheme.parse(name), rows=1)
    layer = random_layer(spec, isa)
    activations = quantize_activation(
        np.random.default_rng(1).standard_normal((1, 256)).astype(np.float32), spec.layout(isa).group, spec.scheme.terms
    )
    base = default_schedule(spec, isa)
    space = decode_space(spec, isa)
    schedules = [base, *(replace(base, **{knob: value}) for knob, values in space.items() for value in values)]
    functions = {f"s{i}": build_linear(spec, isa, f"s{i}", 2, fixed(schedule)) for i, schedule in enumerate(schedules)}
    module = build(functions, read_host_target())
    results = []
    for name in functions:
        y = tensor(np.full((1, 72), np.nan, np.float32))
        module[name](*map(tensor, [*activations, *layer.packed.values()]), y)
        results.append(y.numpy())
    assert np.isfinite(results[0]).all() and np.ptp(results[0]) > 0
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
