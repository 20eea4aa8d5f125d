"""Packed caches: layout, quantization on write, and attention over them, against the NumPy oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.codegen.attention import AttentionSpec, build_attention
from bitwright.codegen.attention.prefill import multiplies_integers
from bitwright.codegen.builder import host_features
from bitwright.codegen.cache import AppendSpec, CacheSpec, build_cache_append
from bitwright.codegen.cache_layout import LARGEST_SCALE, PackedCache
from bitwright.codegen.isa import ISAS, Isa
from bitwright.codegen.reference import attention as reference
from bitwright.codegen.reference import cache as packed_reference
from bitwright.errors import UnsupportedError
from bitwright.scheme import BITS, CacheScheme

from .harness import assert_close, call, empty
from .tolerances import ATTENTION, TWO_BYTE_WEIGHTS, WORDS, Tolerance, rounded_weights

HEADS, WIDTH, CAPACITY = 3, 64, 336


def layout_of(name: str, heads: int = HEADS, width: int = WIDTH, capacity: int = CAPACITY) -> PackedCache:
    return PackedCache(CacheScheme.parse(name), heads, width, capacity)


def cache_of(key: str, value: str, *, heads: int = HEADS, width: int = WIDTH, capacity: int = CAPACITY) -> CacheSpec:
    return CacheSpec(heads, width, width, capacity, CacheScheme.parse(key), CacheScheme.parse(value))


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Rows with outliers in some elements, as keys have them, and rows of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype("float32") * np.exp(rng.standard_normal(shape[-1])).astype("float32")
    x[3::7] = 0
    return x


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(BITS), st.sampled_from(["k", "v"]), st.sampled_from([16, 32, 48, 64, 80, 128]), st.integers(0, 9)
)
def test_codes_come_back(bits: int, tensor: Any, width: int, seed: int) -> None:
    """Whatever lies in a cache is found again, and a token's bytes are those that the scheme declares."""
    layout = PackedCache(CacheScheme(tensor, bits, 16), 2, width, 64)
    old = np.random.default_rng(seed).integers(0, 256, layout.shape, np.uint8)
    codes, scales, zeros = packed_reference.unpack(old, layout)
    assert codes.max() <= layout.top and codes.shape[0] == 64
    x = noise((50, 2, width), seed)
    packed = packed_reference.pack(x, layout, old)
    found = packed_reference.unpack(packed, layout)
    expected = packed_reference.quantize(x, bits, 16)
    np.testing.assert_array_equal(found[0][:50, :, :width], expected[0])
    np.testing.assert_array_equal(found[0][50:], codes[50:])
    for got, new, before in zip(found[1:], expected[1:], (scales, zeros), strict=True):
        np.testing.assert_array_equal(got[:50].view(np.uint8), new.view(np.uint8))
        np.testing.assert_array_equal(got[50:].view(np.uint8), before[50:].view(np.uint8))
    assert layout.blocks == 2 and layout.shape[1] * 2 == 64 * layout.scheme.bytes_per_token(2, width)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [16, 32, 64])
def test_quantization_is_off_by_half_a_step(bits: int, group: int) -> None:
    """Half a step of rounding, and at the ends what the zero point (1/126 of the range) and the half (2**-11) add."""
    x = noise((200, 2, 64), bits)
    codes, scales, zeros = packed_reference.quantize(x, bits, group)
    error = np.abs(packed_reference.dequantize(codes, scales, zeros, bits) - x).reshape(200, 2, -1, group)
    step = scales.astype("float32")[..., None]
    span = step * ((1 << bits) - 1)
    assert np.all(error <= 0.5 * step * 1.001 + span * (0.5 / 63 + 2.0**-10))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.floats(-30, 18), st.integers(0, 9))
def test_scales_reach_the_ends(bits: int, exponent: float, seed: int) -> None:
    """Scales are halves of five bits of mantissa: the exact one or the largest, or at most 1/32 above it."""
    x = noise((40, 1, 32), seed) * np.float32(2.0**exponent)
    scales, top = packed_reference.quantize(x, bits, 32)[1].astype("float64"), (1 << bits) - 1
    exact = (np.maximum(x.max(-1, keepdims=True), 0) - np.minimum(x.min(-1, keepdims=True), 0)) / top
    assert np.all(packed_reference.quantize(x, bits, 32)[1].view(np.uint16) & 31 == 0)
    capped = np.minimum(exact, LARGEST_SCALE)
    half = 2.0**-11 * capped + 2.0**-25
    assert np.all(scales >= capped - half) and np.all(scales <= (capped + half) * (1 + 2.0**-5) + 2.0**-19)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k8row", "v2g16"),
        ("k16", "v3row"),
        ("k4g64", "v32"),
        ("k5g16", "v4row"),
        ("k3g32", "v6g32"),
        ("k4rowm", "v2rowm"),
        ("k5-3rowm", "v16"),
        ("k4rowmr32", "v3rowr32"),
        ("k16", "v4rowmr64"),
        ("k4g32r32", "v16"),
    ],
)
def test_appending_quantizes_in_place(key: str, value: str, rows: Any) -> None:
    cache = cache_of(key, value, capacity=80)
    spec = AppendSpec(cache, rows=rows)
    k, v = noise((80, HEADS, WIDTH), 1), noise((80, HEADS, WIDTH), 2)
    rng = np.random.default_rng(3)
    stored = [rng.integers(0, 100, tensor.shape).astype(tensor.dtype) for tensor in (cache.keys, cache.values)]
    before = [tensor.copy() for tensor in stored]
    layouts = (cache.packed_keys, cache.packed_values)
    pos = 0
    for n in (1,) * 5 if rows else (1, 1, 14, 17, 1, 46):  # across blocks of 16 and 32, to the last token
        new = (a[pos : pos + n].reshape(n, -1) for a in (k, v))
        stored = call(build_cache_append, spec, *new, *stored, pos, outputs=(2, 3))
        pos += n
        for index, (x, layout) in enumerate(zip((k, v), layouts, strict=True)):
            if layout is not None:
                before[index] = packed_reference.pack(x[:pos], layout, before[index])
                np.testing.assert_array_equal(stored[index], before[index])


@pytest.mark.parametrize(("key", "value"), [("k4g32", "v4g32"), ("k4g32r64", "v4g32r64"), ("k4rowmr32", "v16")])
def test_a_long_append_goes_parallel_and_writes_the_same(key: str, value: str) -> None:
    cache = cache_of(key, value, capacity=512)
    k, v = noise((500, HEADS, WIDTH), 1), noise((500, HEADS, WIDTH), 2)
    stored = [np.zeros(tensor.shape, tensor.dtype) for tensor in (cache.keys, cache.values)]
    inputs = k.reshape(500, -1), v.reshape(500, -1)
    got = call(build_cache_append, AppendSpec(cache), *inputs, *stored, 0, outputs=(2, 3))
    for found, x, layout in zip(got, (k, v), (cache.packed_keys, cache.packed_values), strict=True):
        if layout is None:
            np.testing.assert_array_equal(found[:, :500], x.astype("float16").transpose(1, 0, 2))
            continue
        np.testing.assert_array_equal(found, packed_reference.pack(x, layout))


def check(
    spec: AttentionSpec, pos: int, n: int, seed: int = 0, *, spread: float = 2, tolerance: Tolerance | None = None
) -> None:
    """The kernel on n queries at pos against attention over what the cache gives back; later tokens are noise.

    Scores are normal with a standard deviation of ``spread``; ``tolerance`` takes the place of the widths' own.
    """
    cache, rng = spec.cache, np.random.default_rng(seed)
    tokens = pos + n
    q = spread * rng.standard_normal((n, spec.heads, cache.head_dim)).astype("float32")
    known, stored, exact, rows = [], [], [], []
    for tensor, layout in ((cache.keys, cache.packed_keys), (cache.values, cache.packed_values)):
        x = rng.standard_normal((tokens, cache.kv_heads, cache.head_dim)).astype("float32")
        rows.append(x[pos:].reshape(n, -1))
        if layout is None:
            x = x.astype(tensor.dtype)
            exact.append(x)
            pack = reference.pack_keys if tensor.name == "k_cache" else reference.pack_values
            stored.append(pack(x, cache.capacity, tensor.dtype, np.nan))
        else:
            later = noise((cache.capacity, cache.kv_heads, layout.width), seed)
            filled = packed_reference.pack(1e3 * later, layout)
            stored.append(packed_reference.pack(x, layout, filled))
            exact.append(packed_reference.halves(x))
            x = packed_reference.round_trip(x, layout)
        known.append(x)
    if spec.rows == 1 and cache.packed_keys is not None:
        q_seen = packed_reference.round_query(q, cache.packed_keys)
    else:
        q_seen = q
    recent = (q, *exact) if cache.recent else None
    options: dict[str, Any] = {"scale": spec.scale, "softcap": spec.softcap, "window": spec.window}
    expected = reference.attention(q_seen, *known, **options, recent=recent, run=cache.recent)
    y = empty(n, spec.heads * cache.value_dim)
    rows = rows if spec.reads_rows else []
    (y,) = call(build_attention, spec, q.reshape(n, -1), *stored, *rows, pos, y, outputs=(4 + len(rows),))
    if spec.rows is None and multiplies_integers(spec):
        assert_close(y, expected, WORDS)
        return
    floats = spec.rows is None or cache.value.is_float
    assert_close(y, expected, tolerance or (ATTENTION if floats else rounded_weights(cache.value.bits)))


def spec_of(heads: int, cache: CacheSpec, **options: Any) -> AttentionSpec:
    return AttentionSpec(heads, cache, cache.head_dim**-0.5, **options)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize(
    "bits", [bits if bits in (3, 4) else pytest.param(bits, marks=pytest.mark.slow) for bits in BITS]
)
def test_attention_at_every_width(bits: int, rows: Any) -> None:
    spec = spec_of(9, cache_of(f"k{bits}g32", f"v{bits}g32"), rows=rows)
    for pos in (0, 1, 15, 16, 31, 32, 63, 64, 200, 335):
        check(spec, pos, 1)
    if rows is None:
        for pos, n in ((0, 100), (63, 65), (100, 17), (0, 336)):
            check(spec, pos, n)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_token_that_outweighs_others_leaves_them_two_bytes(bits: int) -> None:
    spec = spec_of(9, cache_of("k16", f"v{bits}row"), rows=1)
    for pos in (15, 40, 60):
        check(spec, pos, 1, spread=6, tolerance=TWO_BYTE_WEIGHTS)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "key", "value"),
    [
        (4, 4, 80, "k3row", "v5g16"),
        (8, 1, 96, "k5g16", "v3row"),
        (4, 2, 128, "k4g128", "v16"),
        (2, 1, 256, "k16", "v2g64"),
        (6, 2, 16, "k8g16", "v8row"),
        (4, 4, 48, "k3g16", "v6g16"),
        (3, 1, 64, "k5-3rowm", "v4rowm"),
        (2, 1, 128, "k6-4rowm", "v8row"),
        (4, 1, 64, "k8-2rowm", "v16"),
    ],
)
def test_attention_of_other_shapes(heads: int, kv_heads: int, width: int, key: str, value: str, rows: Any) -> None:
    spec = spec_of(heads, cache_of(key, value, heads=kv_heads, width=width), rows=rows)
    check(spec, 130, rows or 40)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize("window", [5, 100])
def test_attention_with_a_window(rows: Any, window: int) -> None:
    spec = spec_of(6, cache_of("k4g32", "v4g32"), window=window, softcap=20.0, rows=rows)
    for pos in (0, 4, 31, 99, 100, 131, 299):
        check(spec, pos, rows or 36)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_attention_of_every_instruction_set(isa: Isa, rows: Any) -> None:
    if not isa.runs_with(host_features()):
        pytest.skip(f"this machine does not run {isa.name}")
    for key, value in (("k4g32", "v8g32"), ("k8g32", "v3g16"), ("k4rowm", "v4row"), ("k5-3rowm", "v4rowm")):
        check(spec_of(9, cache_of(key, value), isa=isa, rows=rows), 200, rows or 50)


RECENT = [("k4rowmr32", "v4rowr32"), ("k16", "v3g32r64"), ("k5g32r128", "v16"), ("k2g32r128", "v8rowr128")]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("key", "value"), RECENT)
def test_a_token_sees_the_tokens_of_its_run_exactly(isa: Isa, key: str, value: str) -> None:
    if not isa.runs_with(host_features()):
        pytest.skip(f"this machine does not run {isa.name}")
    spec = spec_of(9, cache_of(key, value), isa=isa, rows=1)
    for pos in (0, 31, 32, 63, 200, 256, 335):
        check(spec, pos, 1)
    prompt = spec_of(9, cache_of(key, value), isa=isa)
    for pos, n in ((0, 336), (0, 30), (128, 70), (130, 27), (256, 32)):  # what begins inside a run ends in it
        check(prompt, pos, n)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize(("window", "run"), [(5, 32), (100, 32), (5, 128), (100, 64)])
def test_recent_tokens_and_a_window(rows: Any, window: int, run: int) -> None:
    spec = spec_of(6, cache_of(f"k4g32r{run}", f"v4g32r{run}"), window=window, softcap=20.0, rows=rows)
    for pos in (0, 31, 32, 96, 128, 200, 224, 299):
        check(spec, pos, rows or (36 if pos % run == 0 else 1))


def test_recent_tokens_are_few_bytes_beside_the_others() -> None:
    packed, kept = (cache_of("k4rowm" + run, "v4row" + run) for run in ("", "r64"))
    assert kept.recent == 64 and kept.token_bytes == packed.token_bytes
    for one, other, scheme in ((packed.keys, kept.keys, kept.key), (packed.values, kept.values, kept.value)):
        assert other.shape[1] - one.shape[1] == 64 * WIDTH * 2
        assert scheme.fixed_bytes(HEADS, WIDTH) == HEADS * WIDTH * 2 * (64 + (scheme.tensor == "k"))
    with pytest.raises(UnsupportedError, match="keep equally many recent tokens"):
        cache_of("k4rowr32", "v4rowr64")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(high, low) for high in BITS for low in BITS if low < high]),
    st.sampled_from([64, 128]),
    st.integers(0, 9),
)
def test_keys_of_two_widths_come_back(widths: tuple[int, int], width: int, seed: int) -> None:
    """Both halves' codes are found again, bytes are those of the scheme, errors half a step of each half's own."""
    layout = layout_of("k{}-{}rowm".format(*widths), 2, width, 64)
    x = noise((64, 2, width), seed)
    expected = packed_reference.quantized(x, layout)
    found = packed_reference.unpack(packed_reference.pack(x, layout), layout)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert layout.block_bytes * 2 == 32 * layout.scheme.bytes_per_token(2, width)
    error = np.abs(packed_reference.round_trip(x, layout) - x)[1:].reshape(63, 2, 2, -1)
    span = expected[1][1:].astype("float32") * layout.top
    for half, bits in enumerate(widths):
        inside = error[:, :, half] <= span * (0.5 / ((1 << bits) - 1) + 0.5 / 63 + 2.0**-9)
        assert layout.share < 1 or inside.all()
        assert inside.mean() > 0.9


def test_heads_that_no_line_fits_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="a multiple of 16 elements, not 20"):
        cache_of("k4row", "v16", width=20)
    with pytest.raises(UnsupportedError, match="a group of 64 does not divide a head of 80"):
        cache_of("k16", "v4g64", width=80)
    with pytest.raises(UnsupportedError, match="two widths need heads of a multiple of 64 elements, not 80"):
        cache_of("k5-3rowm", "v16", width=80)
