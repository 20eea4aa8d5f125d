"""Linear kernels against the oracle: every width, grouping, activation, tail and number of tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.codegen.isa import AVX2, AVX512VBMI, AVX512VNNI, AVXVNNI, GENERIC, Isa
from bitwright.codegen.linear import LinearSpec
from bitwright.codegen.linear.int8_group import chain_length
from bitwright.codegen.reference import linear as reference
from bitwright.codegen.reference.linear import TOLERANCE
from bitwright.scheme import LinearScheme

from .linear_case import EVERY_ISA, GENERIC_WIDE, missing, random_layer, relative_error

UNIFORM = [
    f"u{bits}{group}{activation}"
    for bits in (2, 3, 4, 5, 6, 8)
    for group, activation in (("g32", "a8"), ("g64z", "a8"), ("row", "a8"), ("g32z", "a16"), ("g128", "a16"))
]
FLOAT = ["f16", "f32"]
CODEBOOK = ["c3g64a8", "c4rowa8", "c5g32a8", "c6g128a8", "c6g64a16"]
PORTABLE = ["u2g32a8", "u3g64za8", "u4rowa8", "u5g32za8", "u6g128a8", "u8g32za8", "u3g32za16", "u8rowa16", *FLOAT]


def tolerance(scheme: LinearScheme) -> float:
    if scheme.weight.is_float:
        return TOLERANCE["linear_float"]
    return TOLERANCE["linear_packed"]


def check(isa: Isa, spec: LinearSpec, tokens: int, seed: int = 0) -> None:
    if reason := missing(isa):
        pytest.skip(reason)
    x = np.random.default_rng(seed + 1).standard_normal((tokens, spec.inputs)).astype(np.float32)
    assert relative_error(spec, isa, x, random_layer(spec, isa, seed)) <= tolerance(spec.scheme)


@pytest.mark.parametrize("name", UNIFORM + FLOAT)
@pytest.mark.parametrize("isa", [AVX2, AVXVNNI, AVX512VNNI], ids=lambda isa: isa.name)
def test_decode(isa: Isa, name: str) -> None:
    check(isa, LinearSpec(72, 256, LinearScheme.parse(name), bias=True, rows=1), 1)


@pytest.mark.parametrize("name", UNIFORM + FLOAT)
@pytest.mark.parametrize("isa", [AVX2, AVXVNNI, AVX512VNNI], ids=lambda isa: isa.name)
def test_prefill(isa: Isa, name: str) -> None:
    check(isa, LinearSpec(72, 256, LinearScheme.parse(name)), 23)


@pytest.mark.parametrize("name", ["u4g32a8", "u3g64za16", "f16"])
@pytest.mark.parametrize("isa", EVERY_ISA, ids=lambda isa: isa.name)
def test_a_residual_is_added(isa: Isa, name: str) -> None:
    """In whole vectors and in the part of one."""
    check(isa, LinearSpec(71, 128, LinearScheme.parse(name), bias=True, residual=True), 13)


@pytest.mark.parametrize("tokens", [47, 48, 100])
@pytest.mark.parametrize("name", ["u4g32a8", "u8rowa8", "c3g32a8"])
def test_products_of_scales_are_looked_up_from_some_number_of_tokens(name: str, tokens: int) -> None:
    """Rows of very different scales, zeros among them, and weights with scales of zero; in slices of many inputs."""
    spec = LinearSpec(40, 1536, LinearScheme.parse(name))
    for isa in (AVX512VNNI, AVX512VBMI):
        if missing(isa):
            continue
        rng, layer = np.random.default_rng(tokens), random_layer(spec, isa)
        assert layer.scales is not None
        layer.packed["scales"][:, :, 0, 3] = 0
        layer.scales[3] = 0
        x = rng.standard_normal((tokens, 1536)) * 10.0 ** rng.uniform(-15, 15, (tokens, 1))
        x[:, :32] = 0
        assert relative_error(spec, isa, x.astype(np.float32), layer) <= tolerance(spec.scheme)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", CODEBOOK)
@pytest.mark.parametrize("isa", EVERY_ISA, ids=lambda isa: isa.name)
def test_codebooks(isa: Isa, name: str, rows: int | None) -> None:
    """With vpermb, with several shuffles, with bytes split into magnitude and sign, and one by one."""
    check(isa, LinearSpec(72, 256, LinearScheme.parse(name), rows=rows), rows or 13)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("shape", [(192, 576), (576, 1536), (1537, 576)], ids=str)
def test_codebooks_at_odd_sizes(shape: tuple[int, int], rows: int | None) -> None:
    isa = AVX2 if missing(AVX512VBMI) else AVX512VBMI
    spec = LinearSpec(*shape, LinearScheme.parse("c3g64a8"), bias=True, rows=rows)  # type: ignore[arg-type]
    check(isa, spec, rows or 5)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", PORTABLE)
@pytest.mark.parametrize("isa", [GENERIC, GENERIC_WIDE], ids=lambda isa: isa.name)
def test_portable_kernels(isa: Isa, name: str, rows: int | None) -> None:
    check(isa, LinearSpec(72, 256, LinearScheme.parse(name), rows=rows), rows or 13)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 7, 9, 10, 11, 12, 16, 21, 64])
@pytest.mark.parametrize("name", ["u4g32a8", "u4g32a16"])
def test_any_number_of_tokens(name: str, tokens: int) -> None:
    check(AVX2, LinearSpec(64, 128, LinearScheme.parse(name)), tokens, seed=tokens)


@pytest.mark.parametrize("name", ["u4g32za8", "u3g128a16", "u8g64a8"])
def test_prefill_in_slices_of_many_inputs_and_turns_of_many_tokens(name: str) -> None:
    """1536 inputs are unpacked in three slices, for 256 tokens at a time."""
    check(AVX2, LinearSpec(20, 1536, LinearScheme.parse(name), bias=True), 259)


@pytest.mark.parametrize("inputs", [96, 160, 576])
@pytest.mark.parametrize("name", ["u2rowa8", "u2rowa16", "u3rowa8"])
def test_whole_rows_of_inputs_that_the_longest_chain_does_not_divide(name: str, inputs: int) -> None:
    check(AVX2, LinearSpec(40, inputs, LinearScheme.parse(name)), 13)


@given(st.integers(1, 20), st.integers(1, 500))
def test_chains_make_up_the_steps_and_are_not_too_long(longest: int, steps: int) -> None:
    length = chain_length(2 * longest, 2 * steps)
    assert length % 2 == 0 and (2 * steps) % length == 0 and length <= 2 * longest
    assert not any((2 * steps) % longer == 0 for longer in range(length + 2, min(2 * longest, 2 * steps) + 1, 2))


@pytest.mark.parametrize("outputs", [1, 7, 8, 17, 31, 33, 64, 100])
@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
def test_any_number_of_outputs(outputs: int, rows: int | None) -> None:
    """The last tile may be partial in the middle of a vector; neighbours of the result stay untouched."""
    check(AVX2, LinearSpec(outputs, 64, LinearScheme.parse("u4g32a8"), bias=True, rows=rows), rows or 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("inputs", [1, 3, 30, 577])
@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
def test_float_weights_take_any_number_of_inputs(inputs: int, rows: int | None) -> None:
    check(AVX2, LinearSpec(24, inputs, LinearScheme.parse("f16"), rows=rows), rows or 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("outputs", [8, 16, 101, 192])  # tiles of one to four vectors
@pytest.mark.parametrize("scheme", FLOAT)
def test_float_weights_fill_tiles_of_any_number_of_vectors(outputs: int, scheme: str) -> None:
    for isa in (AVX2, AVX512VNNI):
        check(isa, LinearSpec(outputs, 40, LinearScheme.parse(scheme)), 7)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", ["c2g32a8", "c6g32a8"])
def test_extreme_codebooks_do_not_saturate(name: str, rows: int | None) -> None:
    """The outermost bytes that codes may look up times activations of +-127."""
    from bitwright.codegen.packing import dequantize, pack

    from .linear_case import Layer

    spec = LinearSpec(32, 128, LinearScheme.parse(name), rows=rows)  # type: ignore[arg-type]
    step = spec.scheme.weight.value_step
    codebook = np.resize(np.array([-128, 128 - step], np.int8), 1 << spec.scheme.weight.bits)
    codes = np.zeros((32, 128), np.uint8)
    codes[::2] = 1
    for isa in (AVX2, AVXVNNI, AVX512VNNI, AVX512VBMI):
        if missing(isa):
            continue
        layout = spec.layout(isa)
        scales = np.ones((32, layout.groups), np.float16)
        packed = pack(codes, scales, None, layout, codebook)
        values, zeros = reference.look_up(codes, codebook), np.zeros(scales.shape, np.int64)
        layer = Layer(packed, dequantize(packed, layout), values, scales, zeros, None)
        for sign in (1, -1):
            x = np.full((rows or 12, 128), sign, np.float32)
            assert relative_error(spec, isa, x, layer) <= tolerance(spec.scheme)


@pytest.mark.parametrize("rows", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", ["u2g32a8", "u4g32a8", "u5g32a8", "u6g32a8", "u8g32a8", "u8rowa8"])
def test_extreme_values_do_not_saturate(name: str, rows: int | None) -> None:
    """All codes at either end and all activations at +-127: the largest int16 sums that the AVX2 path can meet."""
    from bitwright.codegen.packing import dequantize, pack

    from .linear_case import Layer

    if reason := missing(AVX2):
        pytest.skip(reason)
    spec = LinearSpec(32, 128, LinearScheme.parse(name), rows=rows)  # type: ignore[arg-type]
    layout = spec.layout(AVX2)
    codes = np.full((32, 128), (1 << spec.scheme.weight.bits) - 1, np.uint8)
    codes[::2] = 0
    scales = np.ones((32, layout.groups), np.float16)
    zeros = np.full((32, layout.groups), 1 << (spec.scheme.weight.bits - 1), np.uint8)
    packed = pack(codes, scales, None, layout)
    layer = Layer(packed, dequantize(packed, layout), codes, scales, zeros, None)
    for sign in (1, -1):
        x = np.full((rows or 12, 128), sign, np.float32)
        assert relative_error(spec, AVX2, x, layer) <= tolerance(spec.scheme)


def test_every_instruction_set_is_tested() -> None:
    from bitwright.codegen.isa import ISAS

    assert set(ISAS) <= set(EVERY_ISA)
