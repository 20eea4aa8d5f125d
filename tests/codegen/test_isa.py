"""Which instruction set a machine gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitwright.codegen.isa import AVX2, AVX512VBMI, AVX512VNNI, AVXVNNI, GENERIC, Isa, select_isa

HASWELL = {"avx2", "fma", "f16c", "bmi", "bmi2"}


@pytest.mark.parametrize(
    ("features", "isa"),
    [
        (set(), GENERIC),
        ({"neon", "dotprod"}, GENERIC),
        ({"avx2", "fma"}, GENERIC),  # no half conversion
        (HASWELL, AVX2),
        (HASWELL | {"avxvnni"}, AVXVNNI),
        (HASWELL | {"avx512f", "avx512bw", "avx512vl"}, AVX2),  # Skylake-X: no VNNI
        (HASWELL | {"avx512vl", "avx512vnni"}, AVXVNNI),
        (HASWELL | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}, AVX512VNNI),
        (HASWELL | {"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vbmi"}, AVX512VBMI),
    ],
)
def test_select(features: set[str], isa: Isa) -> None:
    assert select_isa(frozenset(features)) is isa


def test_prefetches_go_where_the_cpu_was_measured_to_want_them() -> None:
    features = frozenset(HASWELL)
    levels = {cpu: select_isa(features, cpu).prefetch_level for cpu in ("znver3", "znver4", "znver5", "", "unheard-of")}
    assert levels == {"znver3": 1, "znver4": 2, "znver5": 1, "": 2, "unheard-of": 2}
    assert replace(select_isa(features, "znver5"), prefetch_level=2) == AVX2
