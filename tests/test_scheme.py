"""Schemes print, parse and count bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import UsageError
from bitwright.scheme import BITS, CODEBOOK_BITS, ActivationScheme, CacheScheme, LinearScheme, WeightScheme

weights = (
    st.builds(WeightScheme, st.just("uniform"), st.sampled_from(BITS), st.sampled_from([0, 32, 64, 128]), st.booleans())
    | st.builds(WeightScheme, st.just("codebook"), st.sampled_from(CODEBOOK_BITS), st.sampled_from([0, 32, 64, 128]))
    | st.sampled_from([WeightScheme("float", 16), WeightScheme("float", 32)])
)


linear_schemes = st.builds(
    lambda weight, bits: LinearScheme(weight, ActivationScheme(16 if weight.is_float else bits)),
    weights,
    st.sampled_from([8, 16]),
)


@given(weight=weights, bits=st.sampled_from([8, 16]))
def test_names_parse_back(weight: WeightScheme, bits: int) -> None:
    scheme = LinearScheme(weight, ActivationScheme(16 if weight.is_float else bits))  # type: ignore[arg-type]
    assert LinearScheme.parse(scheme.name) == scheme


@pytest.mark.parametrize(
    "text",
    [
        "",
        "u7g32",
        "u4g33",
        "u4g0",
        "u4",
        "g32",
        "u4g32a4",
        "f8",
        "f16a8",
        "a8",
        "u4g32 a9",
        "U4G32",
        "c7g32",
        "c4g32z",
        "c4",
    ],
)
def test_nonsense_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        LinearScheme.parse(text)
    assert caught.value.remedy and "u4g32a8" in caught.value.remedy


def test_a_codebook_of_all_bytes_is_refused_with_the_uniform_scheme_as_remedy() -> None:
    with pytest.raises(UsageError, match="256 int8 values") as caught:
        LinearScheme.parse("c8g64a8")
    assert caught.value.remedy == "use u8g64"


def test_default_activation_is_floating_point() -> None:
    assert LinearScheme.parse("u4g32") == LinearScheme.parse("u4g32a16")


def test_storage_bytes_count_codes_scales_and_zero_points() -> None:
    # 10 rows of 64 inputs at 3 bits: 10 * 24 bytes of codes, 10 * 2 scales of 2 bytes, as many zero points of 1 byte.
    assert WeightScheme("uniform", 3, 32).storage_bytes(10, 64) == 240 + 40
    assert WeightScheme("uniform", 3, 32, False).storage_bytes(10, 64) == 240 + 40 + 20
    assert WeightScheme("uniform", 8).storage_bytes(10, 64) == 640 + 20
    assert WeightScheme("codebook", 3, 32).storage_bytes(10, 64) == 240 + 40 + 64  # one line of values
    assert WeightScheme("float", 16).storage_bytes(10, 64) == 1280


def test_cache_schemes() -> None:
    assert CacheScheme.parse("k16").bytes_per_token(3, 64) == 384
    assert CacheScheme.parse("v32").name == "v32"
    for name in ("k8g16", "v4g32", "k3g64", "v2g128", "k6row", "v5row"):
        assert CacheScheme.parse(name).name == name


@pytest.mark.parametrize("name", ["k4", "k4g0", "k7g32", "v4g24", "k16g32", "k16row", "q4g32", "k4g32z", "v", ""])
def test_what_is_no_cache_scheme(name: str) -> None:
    with pytest.raises(UsageError, match="not a cache scheme"):
        CacheScheme.parse(name)


def test_bytes_of_a_cached_token() -> None:
    # 3 heads of 64 elements: 4-bit codes, two groups of a 2-byte scale and a 1-byte zero point each.
    assert CacheScheme.parse("k4g32").bytes_per_token(3, 64) == 3 * (32 + 4)
    assert CacheScheme.parse("k5-3rowm").bytes_per_token(3, 64) == 3 * (20 + 12 + 2)
    assert CacheScheme.parse("v3row").bytes_per_token(3, 64) == 3 * (24 + 2)
    # Keys of an odd width are stored in units of 32 elements: 80 take the room of 96. Values are not.
    assert CacheScheme.parse("k3g16").bytes_per_token(1, 80) == 36 + 10
    assert CacheScheme.parse("v3g16").bytes_per_token(1, 80) == 30 + 10
