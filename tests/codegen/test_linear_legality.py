"""Which linear kernels exist, and what users read when one does not."""

from __future__ import annotations

import pytest

from bitwright.codegen.isa import AVX2
from bitwright.codegen.linear import LinearSpec, build_linear, linear_arguments, why_illegal
from bitwright.codegen.linear.spec import TOKENS
from bitwright.errors import UnsupportedError
from bitwright.scheme import LinearScheme


def spec(name: str, inputs: int, outputs: int = 64, **options: object) -> LinearSpec:
    return LinearSpec(outputs, inputs, LinearScheme.parse(name), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (spec("u4g32a8", 576), None),
        (spec("f16", 577), None),
        (spec("u4rowa16", 65536), None),
        (spec("u4g32a8", 48), "48 inputs are not a multiple of 32, which packed kernels work on"),
        (spec("u4rowa16", 100), "100 inputs are not a multiple of 32, which packed kernels work on"),
        (spec("u4g128a8", 576), "groups of 128 do not divide 576 inputs"),
        (spec("u4rowa8", 65568), "65568 inputs in one group overflow an int32 sum (at most 65536)"),
        (spec("u4g32a8", 0), "a matrix of 64 x 0 weights is empty"),
        (spec("u4g32a8", 64, rows=4), "kernels take one token or any number of tokens, not exactly 4"),
    ],
)
def test_reasons(case: LinearSpec, reason: str | None) -> None:
    assert why_illegal(case, AVX2) == reason


def test_error_says_what_limit_and_remedy() -> None:
    with pytest.raises(UnsupportedError) as raised:
        build_linear(spec("u4g128a8", 576), AVX2)
    assert str(raised.value) == (
        "no u4g128a8 kernel for 64 x 576 weights on avx2\n"
        "  limit: groups of 128 do not divide 576 inputs\n"
        "  remedy: use a smaller group, or f16 for this layer"
    )


def test_arguments_of_an_asymmetric_layer_with_bias() -> None:
    arguments = linear_arguments(spec("u4g32za8", 64, bias=True), AVX2)
    assert [(a.name, a.dtype, a.shape) for a in arguments] == [
        ("x8", "int8", (TOKENS, 64)),
        ("scale", "float32", (TOKENS, 2)),
        ("sum", "int32", (TOKENS, 2)),
        ("codes", "uint8", (2, 8, 4, 1, 32)),
        ("scales", "float16", (2, 2, 4, 8)),
        ("zeros", "uint8", (2, 2, 4, 8)),
        ("bias", "float32", (64,)),
        ("y", "float32", (TOKENS, 64)),
    ]
