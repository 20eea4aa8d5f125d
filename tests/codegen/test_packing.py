"""Layout and packing: what is packed comes back, and each bit lies where the format says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.codegen.layout import PackedLayout, choose_blocks, packed_layout
from bitwright.codegen.packing import dequantize, pack, pack_float, unpack, unpack_codebook, unpack_float
from bitwright.errors import InternalError, UnsupportedError
from bitwright.scheme import BITS, CODEBOOK_BITS, GROUPS, WeightScheme

UNIFORM = st.builds(
    WeightScheme, st.just("uniform"), st.sampled_from(BITS), st.sampled_from((0, *GROUPS)), st.booleans()
)
CODEBOOKS = st.builds(WeightScheme, st.just("codebook"), st.sampled_from(CODEBOOK_BITS), st.sampled_from((0, *GROUPS)))


@st.composite
def layouts(draw: st.DrawFn, schemes: st.SearchStrategy[WeightScheme] = UNIFORM) -> PackedLayout:
    scheme = draw(schemes)
    group = scheme.group
    inputs = draw(st.integers(1, 4)) * (group or 32)
    outputs, lanes, blocks = draw(st.integers(1, 150)), draw(st.sampled_from((8, 16))), draw(st.integers(1, 4))
    return PackedLayout(outputs, inputs, scheme, lanes, blocks)


@settings(max_examples=150, deadline=None)
@given(layouts(), st.integers(0, 2**32))
def test_round_trip(layout: PackedLayout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grouped = (layout.outputs, layout.groups)
    codes = rng.integers(0, 1 << layout.weight.bits, (layout.outputs, layout.inputs)).astype(np.uint8)
    scales = rng.standard_normal(grouped).astype(np.float16)
    zeros = None if layout.weight.symmetric else rng.integers(0, 256, grouped).astype(np.uint8)
    packed = pack(codes, scales, zeros, layout)
    assert [(name, str(array.dtype), array.shape) for name, array in packed.items()] == [
        (tensor.name, tensor.dtype, tensor.shape) for tensor in layout.tensors
    ]
    assert sum(array.nbytes for array in packed.values()) == layout.storage_bytes
    unpacked_codes, unpacked_scales, unpacked_zeros = unpack(packed, layout)
    np.testing.assert_array_equal(unpacked_codes, codes)
    np.testing.assert_array_equal(unpacked_scales, scales)
    assert (unpacked_zeros is None) == (zeros is None)
    if zeros is not None:
        np.testing.assert_array_equal(unpacked_zeros, zeros)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.sampled_from((16, 32)), st.sampled_from((8, 16)))
def test_float_round_trip(outputs: int, inputs: int, bits: int, lanes: int) -> None:
    layout = packed_layout(outputs, inputs, WeightScheme("float", bits), lanes)
    weights = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(f"float{bits}")
    packed = pack_float(weights, layout)
    np.testing.assert_array_equal(unpack_float(packed, layout), weights)
    assert packed["weights"].nbytes == layout.storage_bytes


WHERE = {
    2: ["0:10", "0:32", "0:54", "0:76"],
    3: ["0:210", "1:210", "2:210", "0:543", "1:543", "2:543", "0:76 2:6", "1:76 2:7"],
    4: ["0:3210", "0:7654"],
    5: ["0:43210", "1:43210", "2:43210", "3:43210", "4:43210", "0:765 3:76", "1:765 4:76", "2:765 3:5 4:5"],
    6: ["0:543210", "1:543210", "2:543210", "0:76 1:76 2:76"],
    8: ["0:76543210"],
}
"""By width and step of four inputs: line and bits of a code, the highest first. Written down by hand."""


@pytest.mark.parametrize("bits", BITS)
def test_each_bit_lies_where_the_format_says(bits: int) -> None:
    layout = PackedLayout(16, 64, WeightScheme("uniform", bits, 32), 8, 2)
    assert layout.unit == 4 * len(WHERE[bits])
    for row, k in ((0, 0), (3, 5), (9, 31), (15, 63), (12, 37), (1, 24), (2, 29)):
        step, j = divmod(k % layout.unit, 4)
        places = [(int(p[0]), int(bit)) for p in WHERE[bits][step].split() for bit in p[2:]]
        assert len(places) == bits
        for code_bit, (line, bit) in zip(range(bits - 1, -1, -1), places, strict=True):
            codes = np.zeros((16, 64), np.uint8)
            codes[row, k] = 1 << code_bit
            packed = pack(codes, np.zeros((16, 2), np.float16), None, layout)["codes"]
            expected = np.zeros_like(packed)
            expected[0, k // layout.unit, row // 8, line, 4 * (row % 8) + j] = 1 << bit
            np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("bits", BITS)
def test_every_bit_of_a_unit_is_used_once(bits: int) -> None:
    used = [tuple(map(int, (p[0], bit))) for step in WHERE[bits] for p in step.split() for bit in p[2:]]
    lines = 4 * len(WHERE[bits]) * bits // 32
    assert sorted(used) == [(line, bit) for line in range(lines) for bit in range(8)]


@settings(max_examples=60, deadline=None)
@given(layouts(CODEBOOKS), st.integers(0, 2**32))
def test_codebook_round_trip(layout: PackedLayout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    entries = 1 << layout.weight.bits
    codes = rng.integers(0, entries, (layout.outputs, layout.inputs)).astype(np.uint8)
    scales = rng.standard_normal((layout.outputs, layout.groups)).astype(np.float16)
    step = layout.weight.value_step
    codebook = (rng.integers(-128 // step, 128 // step, entries) * step).astype(np.int8)
    packed = pack(codes, scales, None, layout, codebook)
    assert [(name, str(array.dtype), array.shape) for name, array in packed.items()] == [
        (tensor.name, tensor.dtype, tensor.shape) for tensor in layout.tensors
    ]
    assert sum(array.nbytes for array in packed.values()) == layout.storage_bytes
    np.testing.assert_array_equal(unpack(packed, layout)[0], codes)
    np.testing.assert_array_equal(unpack_codebook(packed, layout), codebook)
    # Wherever a kernel looks a code up within the line, there is its value plus 128.
    for offset in range(0, 64, entries):
        np.testing.assert_array_equal(packed["codebook"][offset : offset + entries], codebook.astype(int) + 128)
    values = codebook[codes] * np.repeat(scales.astype(np.float32), layout.group, axis=1)
    np.testing.assert_array_equal(dequantize(packed, layout), values)


def test_dequantize_centres_on_the_zero_point() -> None:
    layout = PackedLayout(1, 32, WeightScheme("uniform", 4, 32, symmetric=False), 8, 1)
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    packed = pack(codes, np.full((1, 1), 0.5, np.float16), np.full((1, 1), 3, np.uint8), layout)
    np.testing.assert_array_equal(dequantize(packed, layout), (codes.astype(np.float32) - 3) / 2)


def test_storage_bytes_of_a_known_matrix() -> None:
    """576 x 576 at u4g32 on 8 lanes: 18 whole tiles, so exactly the scheme's own count."""
    scheme = WeightScheme.parse("u4g32")
    assert packed_layout(576, 576, scheme, 8).storage_bytes == 576 * (576 // 2 + 18 * 2) == 186_624
    assert packed_layout(576, 576, scheme, 8).storage_bytes == scheme.storage_bytes(576, 576)


@pytest.mark.parametrize(
    ("outputs", "lanes", "blocks"),
    [(576, 8, 4), (192, 8, 4), (49152, 8, 4), (576, 16, 3), (192, 16, 3), (960, 16, 3), (1536, 16, 4)],
)
def test_blocks_leave_no_core_idle(outputs: int, lanes: int, blocks: int) -> None:
    """576 rows are 9 tiles of 4 x 16 rows (5 + 4 on two cores) but 12 tiles of 3 x 16."""
    assert choose_blocks(outputs, lanes) == blocks


@pytest.mark.parametrize(("outputs", "lanes", "blocks"), [(160, 16, 2), (112, 16, 1), (8, 8, 1), (50257, 16, 2)])
def test_blocks_that_pad_least_come_first(outputs: int, lanes: int, blocks: int) -> None:
    """160 rows are 4 tiles of 3 x 16 rows with 32 to spare, or 5 whole tiles of 2 x 16."""
    assert choose_blocks(outputs, lanes) == blocks


@pytest.mark.parametrize("lanes", [8, 16])
def test_whole_vectors_of_rows_have_the_bytes_of_their_scheme(lanes: int) -> None:
    scheme = WeightScheme.parse("u3g32z")
    for vectors in range(1, 70):
        outputs = vectors * lanes
        assert packed_layout(outputs, 64, scheme, lanes).storage_bytes == scheme.storage_bytes(outputs, 64)


def test_pack_refuses_what_does_not_fit() -> None:
    layout = PackedLayout(8, 32, WeightScheme("uniform", 4, 32), 8, 1)
    codes, scales = np.zeros((8, 32), np.uint8), np.zeros((8, 1), np.float16)
    with pytest.raises(InternalError, match="code 16 does not fit 4 bits"):
        pack(codes + 16, scales, None, layout)
    with pytest.raises(InternalError, match=r"scales has shape \(8, 2\), expected \(8, 1\)"):
        pack(codes, np.zeros((8, 2), np.float16), None, layout)
    with pytest.raises(InternalError, match="a codebook belongs to codebook schemes only, not u4g32"):
        pack(codes, scales, None, layout, np.zeros(16, np.int8))
    book = PackedLayout(8, 32, WeightScheme("codebook", 4, 32), 8, 1)
    with pytest.raises(InternalError, match="a codebook belongs to"):
        pack(codes, scales, None, book)
    with pytest.raises(InternalError, match=r"codebook has shape \(8,\), expected \(16,\)"):
        pack(codes, scales, None, book, np.zeros(8, np.int8))
    with pytest.raises(InternalError, match="zero points do not belong to u4g32"):
        pack(codes, scales, np.zeros((8, 1), np.uint8), layout)


@pytest.mark.parametrize("weight", [65505.0, -1e6])
def test_weights_that_overflow_half_precision_are_refused(weight: float) -> None:
    matrix = np.full((3, 5), 65504, np.float32)
    layout = packed_layout(3, 5, WeightScheme("float", 16), 8)
    assert np.isfinite(pack_float(matrix, layout)["weights"]).all()
    matrix[2, 4] = weight
    with pytest.raises(UnsupportedError, match="too large for f16") as caught:
        pack_float(matrix, layout)
    assert "magnitudes up to 65504" in str(caught.value) and "f32" in str(caught.value)
