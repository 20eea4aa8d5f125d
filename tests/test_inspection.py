"""What inspect says about sites and bytes."""

from __future__ import annotations

from typing import Any

import pytest

from bitwright.codegen.layout import packed_layout
from bitwright.inspection import Inspection, SiteReport, inspect_model
from bitwright.scheme import WeightScheme
from bitwright.site import Site
from tests.canonical_model import Shape, decoder


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect_model(decoder(Shape(layers=1)), context=64)  # type: ignore[arg-type]  # a loaded model will do


def test_schemes_are_those_that_divide(found: Inspection) -> None:
    schemes = {report.site.name: report.schemes for report in found.sites}
    assert "u4g32" in schemes["layer.0.q"] and "u4g64" not in schemes["layer.0.q"]  # 96 inputs
    packed = [f"k{bits}{group}" for bits in (2, 3, 4, 5, 6, 8) for group in ("g16", "g32", "row")]  # heads of 32
    assert schemes["layer.0.k_cache"] == (*packed, *(f"{name}m" for name in packed), "k16", "k32")


def test_totals_are_exact_and_only_of_schemes_legal_everywhere(found: Inspection) -> None:
    assert "u4g32" in found.totals and "u4g64" not in found.totals
    lanes = 16 if found.isa.startswith("avx512") else 8
    matrices = [report.site.shape for report in found.sites if report.site.weight]
    expected = sum(packed_layout(*shape, WeightScheme("uniform", 4, 32), lanes).storage_bytes for shape in matrices)
    assert found.totals["u4g32"] == expected


def test_json_holds_every_site(found: Inspection) -> None:
    document: dict[str, Any] = found.to_json()
    assert [site["name"] for site in document["sites"]] == [report.site.name for report in found.sites]
    assert (
        document["parameters"]
        == sum(r.site.parameters for r in found.sites)
        == 101 * 96 + 96 * 96 * 2 + 32 * 96 * 2 + 160 * 96 * 3
    )


def test_schemes_in_short() -> None:
    site = Site("a", "linear", (1, 64), "w")
    assert SiteReport(site, ("u2g32", "u2row", "u4g32", "u4row", "f16")).summary == "u2/4 in g32 row, f16"
    assert SiteReport(site, ("u2g32", "u4row")).summary == "u2g32, u4row"
    codebooks = ("u2g32", "c3g32", "c3g64", "c4g32", "c4g64", "f16")
    assert SiteReport(site, codebooks).summary == "u2 in g32, c3/4 in g32 g64, f16"
    assert SiteReport(site, ("k16", "k32")).summary == "k16, k32"
    cache = Site("b", "v_cache", (1, 32))
    assert SiteReport(cache, ("v2g32", "v2row", "v16")).summary == "v2 in g32 row, v16"
