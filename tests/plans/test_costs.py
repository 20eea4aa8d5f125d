"""Prices of schemes: bytes as stored, losses by tile."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.plan import parse_site_scheme
from bitwright.plans.costs import Costs
from tests.small_profile import ACTIVATION, write_profile


@pytest.fixture
def costs(tmp_path: Path) -> Costs:
    return Costs(write_profile(tmp_path / "profile"), context=10)


def test_a_matrix_costs_its_bytes_and_the_losses_of_weights_and_activations(costs: Costs) -> None:
    found = costs.of("layer.0.q", parse_site_scheme("u4g32a8")).uses
    assert found["bytes"] == 128 * (64 * 4 // 8 + 2 * 2)
    assert found["kl"] == pytest.approx(8 * (4.0**-4 + ACTIVATION))
    assert costs.of("layer.0.q", parse_site_scheme("f16")).uses == {"kl": 0.0, "bytes": 128 * 64 * 2}


def test_sixteen_bit_activations_cost_2_to_the_minus_14_of_eight(costs: Costs) -> None:
    found = costs.of("layer.0.q", parse_site_scheme("u4g32a16")).uses["kl"]
    assert found == pytest.approx(8 * (4.0**-4 + ACTIVATION * 2.0**-14))


def test_a_run_costs_the_losses_of_its_own_tiles(costs: Costs) -> None:
    # The first of two tiles has two thirds of the importance.
    found = costs.of("layer.0.q", parse_site_scheme("u6g32a8:64+u2g32a8:64")).uses
    assert found["kl"] == pytest.approx(8 * (2 / 3 * 4.0**-6 + 1 / 3 * 4.0**-2 + ACTIVATION))
    assert found["bytes"] == 64 * (64 * 6 // 8 + 4) + 64 * (64 * 2 // 8 + 4)


def test_a_cache_counts_when_there_is_a_context(costs: Costs) -> None:
    scheme = parse_site_scheme("k8g32")
    # Two heads of 32 bytes, each with a word of scale and zero point.
    assert costs.of("layer.0.k_cache", scheme).uses["bytes"] == 10 * 2 * (32 + 2)
    assert Costs(costs.profile).of("layer.0.k_cache", scheme).uses["bytes"] == 0


def test_latencies_are_asked_for_each_site_and_scheme(costs: Costs) -> None:
    timed = Costs(costs.profile, latencies=lambda site, scheme: {"decode_ms": len(site.name) + len(scheme.name)})
    assert timed.of("table", parse_site_scheme("u4g32a8")).uses["decode_ms"] == len("table") + len("u4g32a8")


def test_the_menu_holds_every_profiled_scheme_smallest_first(costs: Costs) -> None:
    menu = costs.menu("layer.1.mlp.0")
    assert len(menu) == 12 and menu[0].scheme.name == "u2g32a16" and menu[-1].scheme.name == "u8g32a8"
    eight = Costs(costs.profile, activations=(8,)).menu("layer.1.mlp.0")
    assert [d.scheme.name for d in eight] == [f"u{bits}g32a8" for bits in (2, 3, 4, 5, 6, 8)]
    assert [d.scheme.name for d in costs.menu("layer.1.v_cache")] == ["v4g32", "v8g32", "v16"]


def test_what_was_not_profiled_is_named_with_what_was(costs: Costs) -> None:
    with pytest.raises(InputError, match="c4g64 was not profiled"):
        costs.of("table", parse_site_scheme("c4g64a8"))
    with pytest.raises(InputError) as caught:
        costs.of("layer.0.k_cache", parse_site_scheme("k2g32"))
    assert "k2g32 was not profiled" in str(caught.value) and "k16, k4g32, k8g32" in str(caught.value)
