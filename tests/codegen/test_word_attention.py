"""Prefill attention in 16-bit integers, on every instruction set that multiplies them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.codegen.attention import AttentionSpec, build_attention
from bitwright.codegen.attention.prefill import multiplies_integers
from bitwright.codegen.attention.word_dot import LARGEST_SUM, largest_word
from bitwright.codegen.isa import AVX2, AVX512VBMI, AVX512VNNI, AVXVNNI, GENERIC, Isa, select_isa
from bitwright.codegen.reference import attention as reference

from .harness import assert_close, call, empty
from .linear_case import host_features, missing
from .test_attention import check, spec_of
from .tolerances import EXP2, WORDS

WORD_ISAS = (AVX512VBMI, AVX512VNNI, AVXVNNI, AVX2)
SMALL = (4, 2, 32, 32)
SHAPES = [  # heads, kv_heads, head_dim, value_dim
    (9, 3, 64, 64),
    (4, 4, 20, 12),
    (7, 1, 80, 80),
    (4, 2, 97, 33),
    (5, 5, 128, 160),
]


def best_isa() -> Isa:
    isa = select_isa(host_features())
    if isa not in WORD_ISAS:
        pytest.skip("this machine multiplies no pairs of 16-bit integers")
    return isa


@pytest.mark.parametrize("isa", WORD_ISAS, ids=lambda isa: isa.name)
def test_every_instruction_set(isa: Isa) -> None:
    if (reason := missing(isa)) is not None:
        pytest.skip(reason)
    spec = spec_of((9, 3, 64, 64), isa=isa)
    assert multiplies_integers(spec)
    for pos, n in ((0, 100), (63, 65), (335, 1)):
        check(spec, pos, n, tolerance=WORDS)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_at_block_and_chunk_borders(shape: tuple[int, int, int, int]) -> None:
    spec = spec_of(shape, isa=best_isa())
    for pos, n in ((0, 1), (0, 2), (15, 2), (63, 66), (100, 17), (127, 2), (0, 336), (335, 1)):
        check(spec, pos, n, tolerance=WORDS)


@pytest.mark.parametrize("window", [1, 37, 130])
def test_sliding_window_and_softcap(window: int) -> None:
    spec = spec_of(SMALL, isa=best_isa(), window=window, softcap=2.5)
    for pos, n in ((0, 1), (0, 40), (4, 36), (99, 100), (130, 206)):
        check(spec, pos, n, tolerance=WORDS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 335), st.integers(1, 336), st.integers(0, 10))
def test_any_position_and_length(pos: int, n: int, seed: int) -> None:
    check(spec_of(SMALL, isa=best_isa()), pos, min(n, 336 - pos), seed, tolerance=WORDS)


def test_the_largest_sums_do_not_overflow() -> None:
    """All elements equal: every query and key is its largest word, all weights are, and so are the values."""
    for dims in (64, 128, 256):
        assert dims * largest_word(dims) ** 2 <= LARGEST_SUM < dims * (largest_word(dims) + 1) ** 2
    spec = spec_of((6, 2, 64, 64), isa=best_isa())
    q, k, v = (np.full((200, heads, 64), size, "float32") for heads, size in ((6, -1.5), (2, 1.5), (2, 300)))
    (y,) = call_on(spec, q, k, v)
    np.testing.assert_allclose(y, 300, rtol=2.0**-13)


def test_zeros_stay_zeros_and_one_key_may_win() -> None:
    spec = spec_of((2, 1, 32, 32), isa=best_isa())
    rng = np.random.default_rng(1)
    k, v = rng.standard_normal((2, 80, 1, 32)).astype("float32")
    (y,) = call_on(spec, np.zeros((80, 2, 32), "float32"), k, np.zeros_like(v))
    np.testing.assert_array_equal(y, 0)
    q = np.repeat(1e3 * k, 2, axis=1)  # scores of 1e5: a token attends to itself or to a longer key
    (y,) = call_on(spec, q, k, v)
    assert_close(y, reference.attention(q, k.astype("float16"), v.astype("float16"), scale=spec.scale), WORDS)


def test_caches_of_single_precision_are_multiplied_as_floats() -> None:
    spec = spec_of((9, 3, 64, 64), "float32", isa=best_isa())
    assert not multiplies_integers(spec) and not multiplies_integers(spec_of(SMALL, isa=GENERIC))
    check(spec, 40, 70)


def call_on(spec: AttentionSpec, q: Any, k: Any, v: Any) -> Any:
    caches = reference.pack_keys(k, 336, "float16", np.nan), reference.pack_values(v, 336, "float16", np.nan)
    y = empty(len(q), spec.heads * spec.cache.value_dim)
    return call(build_attention, spec, q.reshape(len(q), -1), *caches, 0, y, outputs=(4,))


def test_powers_of_two() -> None:
    x = np.concatenate([np.linspace(-126, 0, 40001), [-127, -1e4, -3e38]]).astype("float32")[None, :]
    (y,) = call(build_exp2, Exp2(x.shape[1]), x, empty(*x.shape), outputs=(1,))
    assert_close(y, np.exp2(np.maximum(x, -126).astype(np.float64)), EXP2)
    assert y.max() <= 1


class Exp2(int):
    """Numbers of a row."""

    name = "exp2"


def build_exp2(width: Exp2) -> Any:
    from bitwright.codegen.builder import kernel, load, store
    from bitwright.codegen.vectormath import exp2, for_spans

    with kernel("exp2") as k:
        x, y = (k.tensor(name, (1, int(width)), "float32") for name in "xy")
        for_spans(int(width), 16, lambda at, n: store(y, exp2(load(x, [0, at], n), n), [0, at], n))
    return k.func
