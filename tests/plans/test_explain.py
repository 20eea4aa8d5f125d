"""Moves, prices and verdicts, on losses whose optimum is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitwright.plan import Plan, parse_site_scheme
from bitwright.plans.costs import Costs
from bitwright.plans.explain import explain
from bitwright.plans.moves import neighbours
from bitwright.plans.price import Price, stated_price
from tests.small_profile import IMPORTANCE, write_profile


@pytest.fixture
def costs(tmp_path: Path) -> Costs:
    return Costs(write_profile(tmp_path / "profile"))


BYTES_PER_BIT = {"layer.0.q": 128 * 8, "layer.1.mlp.0": 192 * 8}


def test_a_bit_more_saves_what_the_losses_say_per_byte(costs: Costs) -> None:
    found = neighbours(costs.of("layer.0.q", parse_site_scheme("u4g32a16")), costs, Price({}))
    assert found.up is not None and found.down is not None and found.free is None
    assert found.up.part == "u4g32a16 -> u5g32a16"
    assert found.up.value == pytest.approx(8 * (4.0**-4 - 4.0**-5) / BYTES_PER_BIT["layer.0.q"])
    assert found.down.part == "u4g32a16 -> u3g32a16"
    assert found.down.value == pytest.approx(8 * (4.0**-3 - 4.0**-4) / BYTES_PER_BIT["layer.0.q"])


def test_a_run_moves_alone(costs: Costs) -> None:
    mixed = costs.of("layer.0.q", parse_site_scheme("u4g32a16:64+u3g32a16:64"))
    found = neighbours(mixed, costs, Price({}))
    # A bit more for the second tile (a third of the importance) saves 8/3 * 3/256, more than for the first.
    assert found.up is not None and found.up.part == "64 rows: u3g32a16 -> u4g32a16"
    assert found.up.change["bytes"] == 64 * 8


def test_the_least_and_the_most_have_no_neighbour_on_one_side(costs: Costs) -> None:
    assert neighbours(costs.of("table", parse_site_scheme("u2g32a16")), costs, Price({})).down is None
    assert neighbours(costs.of("table", parse_site_scheme("f16")), costs, Price({})).up is None


def test_activations_are_compared_only_where_time_is_known(costs: Costs) -> None:
    decision = costs.of("table", parse_site_scheme("u4g32a8"))
    found = neighbours(decision, costs, Price({}))
    assert found.free is None and found.up is not None and found.up.part == "u4g32a8 -> u5g32a8"
    timed = Costs(costs.profile, latencies=lambda *_: {"decode_ms": 1.0})
    better = neighbours(timed.of("table", decision.scheme), timed, Price({})).free
    assert better is not None and better.part == "u4g32a8 -> u4g32a16"


def test_time_is_charged_for_at_its_price(costs: Costs) -> None:
    timed = Costs(costs.profile, latencies=lambda _, scheme: {"decode_ms": 1.0 if "a16" in scheme.name else 0.5})
    gain = IMPORTANCE["table"] * 1e-5 * (1 - 2.0**-14)
    for price, better in ((1.9 * gain, True), (2.1 * gain, False)):
        found = neighbours(timed.of("table", parse_site_scheme("u4g32a8")), timed, Price({"decode_ms": price}))
        assert (found.free is not None) == better


def optimal(costs: Costs, price: float) -> Plan:
    """Every site's best at a price of a byte, with the price in the notes."""
    best = {
        site.name: min(costs.menu(site.name), key=lambda d: d.uses["kl"] + price * d.uses["bytes"]).scheme
        for site in costs.profile.header.sites
    }
    return Plan(best, "m" * 64, "t" * 16, {"objective": "kl", "prices": {"bytes": price}})


@pytest.mark.parametrize("price", [1e-7, 1e-6, 1e-5])
def test_no_site_of_an_optimal_plan_is_blamed(costs: Costs, price: float) -> None:
    explanation = explain(optimal(costs, price), costs)
    assert explanation.stated and explanation.price.byte == price
    blamed = {
        r.site.name: r.verdict for r in explanation.reasons if "worth more" in r.verdict or "not the" in r.verdict
    }
    assert blamed == {} and len(explanation.reasons) == 9


def test_an_edited_site_is_blamed_and_others_are_not(costs: Costs) -> None:
    plan = optimal(costs, 1e-6)
    own = plan.schemes["layer.0.q"].name
    low = explain(replace(plan, schemes={**plan.schemes, "layer.0.q": parse_site_scheme("u2g32a16")}), costs)
    high = explain(replace(plan, schemes={**plan.schemes, "layer.0.q": parse_site_scheme("f16")}), costs)
    assert own not in ("u2g32a16", "f16")
    verdicts = [{r.site.name: r.verdict for r in found.reasons} for found in (low, high)]
    assert "worth more bits than it has" in verdicts[0]["layer.0.q"]
    assert "has more bits than it is worth" in verdicts[1]["layer.0.q"]
    assert all("worth more" not in text for name, text in verdicts[0].items() if name != "layer.0.q")


def test_a_price_that_nobody_states_is_read_off_the_plan(costs: Costs) -> None:
    plan = replace(optimal(costs, 1e-6), notes={})
    found = explain(plan, costs)
    assert not found.stated
    assert [r.verdict for r in found.reasons if "worth more" in r.verdict or "more bits than" in r.verdict] == []


def test_prices_become_nats_whatever_was_minimised() -> None:
    # Minimising bytes: a nat more would have saved 2e6 bytes, so a byte is worth 1 / 2e6 nats.
    found = stated_price({"objective": "bytes", "prices": {"kl": 2e6, "decode_ms": 4e6}})
    assert found is not None and found.charges == {"bytes": pytest.approx(5e-7), "decode_ms": pytest.approx(2.0)}
    assert stated_price({"objective": "bytes", "prices": {"decode_ms": 4e6}}) is None
    assert stated_price({"strategy": "uniform"}) is None


def test_one_bad_site_does_not_move_the_price_that_is_read_off(costs: Costs) -> None:
    plan = optimal(costs, 1e-6)
    edited = replace(plan, schemes={**plan.schemes, "layer.0.q": parse_site_scheme("u2g32a16")}, notes={})
    verdicts = {r.site.name: r.verdict for r in explain(edited, costs).reasons}
    assert [name for name, text in verdicts.items() if "worth more bits" in text] == ["layer.0.q"]
