"""The front against every combination."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest

from bitwright.plans.costs import Costs
from bitwright.plans.diff import total
from bitwright.plans.front import front, hull
from tests.small_profile import write_profile


def test_no_combination_lies_below_the_front(tmp_path: Path) -> None:
    costs = Costs(write_profile(tmp_path))
    menus = {site: costs.menu(site) for site in ("layer.0.q", "layer.1.q", "layer.1.mlp.0")}
    points = list(front(menus, "bytes"))
    everything = [total(choice) for choice in product(*menus.values())]
    for low, high in pairwise(points):
        assert high["bytes"] > low["bytes"] and high["kl"] < low["kl"]
        slope = (high["kl"] - low["kl"]) / (high["bytes"] - low["bytes"])
        for uses in everything:
            assert uses["kl"] >= low["kl"] + slope * (uses["bytes"] - low["bytes"]) - 1e-12
    assert any(uses == pytest.approx(points[3]) for uses in everything)


def test_a_hull_leaves_out_what_is_never_best(tmp_path: Path) -> None:
    menu = Costs(write_profile(tmp_path)).menu("layer.0.q")
    assert [decision.scheme.name for decision in hull(menu, "bytes")] == [
        f"u{bits}g32a16" for bits in (2, 3, 4, 5, 6, 8)
    ]
