"""Differences: grouped by role and change, priced by a profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.plans.costs import Costs
from bitwright.plans.diff import difference
from bitwright.plans.place import Place, ranges, together
from tests.small_profile import plan_of, write_profile

AFTER = {"layer_0_q": "u5g32a8", "layer_1_q": "u5g32a8", "table": "u8g32a8", "layer_1_mlp_0": "u4g32a8:64+u2g32a8:128"}


def test_sites_that_changed_alike_stand_together() -> None:
    found = difference(plan_of(), plan_of(**AFTER))
    assert [(c.where, c.before, c.after) for c in found.changes] == [
        ("table", "u4g32a8", "u8g32a8"),
        ("q of layers 0-1", "u4g32a8", "u5g32a8"),
        ("mlp.0 of layer 1", "u4g32a8", "u4g32a8:64+u2g32a8:128"),
    ]
    assert found.same == 5 and found.before == {} and found.changes[0].uses == {}


def test_a_profile_prices_changes_and_totals(tmp_path: Path) -> None:
    costs = Costs(write_profile(tmp_path))
    found = difference(plan_of(), plan_of(**AFTER), costs)
    heads = found.changes[1].uses
    assert heads["bytes"] == 2 * 128 * 8
    assert heads["kl"] == pytest.approx((8 + 0.5) * (4.0**-5 - 4.0**-4))
    for resource in ("bytes", "kl"):
        change = sum(c.uses[resource] for c in found.changes)
        assert found.after[resource] - found.before[resource] == pytest.approx(change)


def test_equal_plans_differ_nowhere() -> None:
    assert difference(plan_of(), plan_of()).changes == ()


def test_plans_of_other_models_or_sites_are_refused() -> None:
    with pytest.raises(InputError, match="the plans were made for different models"):
        difference(plan_of(), replace(plan_of(), model="x" * 64))
    fewer = {site: scheme for site, scheme in plan_of().schemes.items() if site != "layer.1.q"}
    with pytest.raises(InputError) as caught:
        difference(replace(plan_of(), schemes=fewer), plan_of())
    assert "1 sites are in one of the plans only" in str(caught.value) and "layer.1.q" in str(caught.value)


def test_names_for_people() -> None:
    assert Place.of("layer.12.mlp.0") == Place("mlp.0", 12) and Place.of("table") == Place("table")
    assert ranges([7, 3, 2, 1, 9, 3]) == "1-3, 7, 9"
    assert together(["layer.0.q", "table"]) == "layer.0.q, table"
