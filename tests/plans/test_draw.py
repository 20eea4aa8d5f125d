"""Pictures: files of their kind, equal bytes for equal plans, numbers that are the plan's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitwright.errors import InputError, UsageError
from bitwright.plans.bits import bits_map, bits_per_number
from bitwright.plans.costs import Costs
from bitwright.plans.draw import draw
from tests.small_profile import SITES, plan_of, write_profile

MIXED = {"layer_0_q": "u4g32a8:64+u2g32a8:64", "layer_1_k__cache": "k4g32"}
BY_NAME = {site.name: site for site in SITES}


def test_bits_count_scales_and_runs() -> None:
    plan = plan_of(**MIXED)
    assert bits_per_number(plan.schemes["layer.1.q"], None) == 4.5
    assert bits_per_number(plan.schemes["layer.0.q"], None) == 3.5
    for name, scheme in plan.schemes.items():
        assert bits_per_number(scheme, BY_NAME[name]) == bits_per_number(scheme, None)


def test_the_map_has_layers_below_single_sites() -> None:
    found = bits_map(plan_of(**MIXED), BY_NAME)
    assert found.rows == ("table", "0", "1") and found.roles == ("q", "mlp.0", "k_cache", "v_cache")
    np.testing.assert_allclose(found.bits, [[4.5] * 4, [3.5, 4.5, 16, 16], [4.5, 4.5, 4.5, 16]])


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_equal_plans_give_equal_bytes(tmp_path: Path, kind: str) -> None:
    costs = Costs(write_profile(tmp_path / "profile"))
    written = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        written.append(draw(plan_of(**MIXED), tmp_path / folder / f"p.{kind}", costs, name="p"))
    assert [path.name for path in written[0]] == ([f"p.{kind}"] if kind == "html" else [f"p.{kind}", f"p-front.{kind}"])
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!doctype html>"}[kind])


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    costs = Costs(write_profile(tmp_path / "profile"))
    draw(plan_of(**MIXED), tmp_path / "p.html", costs, name="<p>")
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 2 and "&lt;p&gt;" in page and "layer.1.mlp.0" in page
    assert "<script" not in page and "<link" not in page and "src=" not in page


def test_without_a_profile_there_are_bits_only(tmp_path: Path) -> None:
    assert draw(plan_of(), tmp_path / "p.png") == [tmp_path / "p.png"]
    assert not (tmp_path / "p-front.png").exists()


def test_other_endings_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'p\.pdf' is no name of a picture"):
        draw(plan_of(), tmp_path / "p.pdf")
    with pytest.raises(InputError, match="the file cannot be written"):
        draw(plan_of(), tmp_path / "missing" / "p.png")
