"""Attention kernels against the oracle; every cache is NaN wherever the kernel must not look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.codegen.attention import (
    AttentionSpec,
    FullAttentionSpec,
    attention_team_kernel,
    build_attention,
    build_attention_full,
)
from bitwright.codegen.cache import CacheSpec
from bitwright.codegen.isa import GENERIC
from bitwright.codegen.reference import attention as reference
from bitwright.errors import UnsupportedError
from bitwright.scheme import CacheScheme

from .harness import assert_close, call, empty
from .tolerances import ATTENTION, Tolerance

DECODE = {"rows": 1}
SHAPES = [  # heads, kv_heads, head_dim, value_dim
    (9, 3, 64, 64),
    (4, 4, 20, 12),
    (7, 1, 80, 80),
    (4, 2, 96, 33),
]


def spec_of(
    shape: tuple[int, int, int, int], dtype: str = "float16", capacity: int = 336, **options: Any
) -> AttentionSpec:
    heads, kv_heads, head_dim, value_dim = shape
    bits = 16 if dtype == "float16" else 32
    cache = CacheSpec(kv_heads, head_dim, value_dim, capacity, CacheScheme("k", bits), CacheScheme("v", bits))
    return AttentionSpec(heads, cache, head_dim**-0.5, **options)


def check(spec: AttentionSpec, pos: int, n: int, seed: int = 0, tolerance: Tolerance = ATTENTION) -> None:
    """Run the kernel on n queries at pos; keys and values after pos + n - 1, or before every window, are NaN."""
    cache, rng = spec.cache, np.random.default_rng(seed)
    tokens = pos + n
    q = 2 * rng.standard_normal((n, spec.heads, cache.head_dim)).astype("float32")
    k = rng.standard_normal((tokens, cache.kv_heads, cache.head_dim)).astype(cache.keys.dtype)
    v = rng.standard_normal((tokens, cache.kv_heads, cache.value_dim)).astype(cache.values.dtype)
    expected = reference.attention(q, k, v, scale=spec.scale, softcap=spec.softcap, window=spec.window)
    if spec.window:
        unseen = max(0, pos - spec.window + 1)
        k[:unseen] = v[:unseen] = np.nan
    k_cache = reference.pack_keys(k, cache.capacity, cache.keys.dtype, np.nan)
    v_cache = reference.pack_values(v, cache.capacity, cache.values.dtype, np.nan)
    y = empty(n, spec.heads * cache.value_dim)
    (y,) = call(build_attention, spec, q.reshape(n, -1), k_cache, v_cache, pos, y, outputs=(4,))
    assert_close(y, expected, tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_decode_at_block_and_chunk_borders(shape: tuple[int, int, int, int], dtype: str) -> None:
    spec = spec_of(shape, dtype, **DECODE)
    for pos in (0, 1, 15, 16, 63, 64, 200, 335):
        check(spec, pos, 1)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_decode_splits_a_long_context_evenly_or_not(threads: int) -> None:
    spec = spec_of((9, 3, 64, 64), capacity=2048, threads=threads, **DECODE)
    for pos in (500, 1300, 2047):
        check(spec, pos, 1)


SLOTS = 4


def build_team_by_turns(spec: AttentionSpec) -> Any:
    """The decode kernel with one more argument, the number of threads: one thread plays them all, as in a step."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import kernel, loop
    from bitwright.codegen.team import THREADS

    team = attention_team_kernel(spec)
    with kernel(spec.name) as function:
        buffers = {
            tensor.name: function.tensor(tensor.name, tensor.shape, tensor.dtype)
            if tensor.shape
            else function.scalar(tensor.name)
            for tensor in team.arguments
        }
        threads = function.scalar("threads")
        for tensor in team.scratch:
            shape = tuple(SLOTS if extent == THREADS else extent for extent in tensor.shape)
            buffers[tensor.name] = T.alloc_buffer(shape, tensor.dtype)
        for phase in team.phases:
            with loop(threads if phase.split else 1) as thread:
                phase.emit(buffers, thread, threads)
    return function.func


def test_the_number_of_threads_may_be_known_at_run_time_only() -> None:
    spec = spec_of((9, 3, 64, 64), **DECODE)
    rng = np.random.default_rng(4)
    q = rng.standard_normal((1, 9, 64)).astype("float32")
    k, v = rng.standard_normal((2, 300, 3, 64)).astype("float16")
    caches = reference.pack_keys(k, 336, "float16", np.nan), reference.pack_values(v, 336, "float16", np.nan)
    for tokens in (1, 64, 65, 300):  # fewer chunks than threads, and more
        expected = reference.attention(q, k[:tokens], v[:tokens], scale=spec.scale)
        for threads in range(1, SLOTS + 1):
            arguments = q.reshape(1, -1), *caches, tokens - 1, empty(1, 576), threads
            (y,) = call(build_team_by_turns, spec, *arguments, outputs=(4,))
            assert_close(y, expected, ATTENTION)


@pytest.mark.parametrize("shape", SHAPES)
def test_prefill(shape: tuple[int, int, int, int]) -> None:
    spec = spec_of(shape)
    for pos, n in ((0, 1), (0, 2), (0, 100), (63, 65), (100, 17), (0, 336), (335, 1)):
        check(spec, pos, n)


@pytest.mark.parametrize("window", [1, 5, 16, 100])
@pytest.mark.parametrize("rows", [1, None])
def test_sliding_window(rows: int | None, window: int) -> None:
    spec = spec_of((4, 2, 32, 32), window=window, rows=rows)
    for pos in (0, 4, 16, 17, 99, 100, 300):
        check(spec, pos, 1)
        if rows is None:
            check(spec, pos, 36)


@pytest.mark.parametrize("rows", [1, None])
def test_softcap(rows: int | None) -> None:
    spec = spec_of((4, 2, 32, 32), softcap=2.5, window=50, rows=rows)
    for pos in (0, 70):
        check(spec, pos, rows or 40)


@pytest.mark.parametrize(("lanes", "shape"), [(4, (5, 5, 20, 12)), (16, (5, 5, 20, 12)), (16, (9, 3, 64, 64))])
def test_other_vector_widths(lanes: int, shape: tuple[int, int, int, int]) -> None:
    check(spec_of(shape, isa=replace(GENERIC, lanes=lanes), **DECODE), 200, 1)
    check(spec_of(shape, isa=replace(GENERIC, lanes=lanes)), 40, 150)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 335), st.integers(1, 336), st.integers(0, 10))
def test_any_position_and_length(pos: int, n: int, seed: int) -> None:
    check(spec_of((6, 2, 16, 24)), pos, min(n, 336 - pos), seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 335), st.integers(1, 336), st.integers(0, 10))
def test_any_position_and_length_with_a_window(pos: int, n: int, seed: int) -> None:
    check(spec_of((6, 2, 16, 24), window=37), pos, min(n, 336 - pos), seed)


def test_one_prefill_equals_decoding_token_by_token() -> None:
    """Bit for bit is not promised (sums are ordered by chunk), closeness is."""
    rng = np.random.default_rng(5)
    prefill, decode = spec_of((9, 3, 64, 64)), spec_of((9, 3, 64, 64), **DECODE)
    q = rng.standard_normal((150, 9 * 64)).astype("float32")
    k, v = rng.standard_normal((2, 150, 3, 64)).astype("float16")
    k_cache, v_cache = reference.pack_keys(k, 336, "float16"), reference.pack_values(v, 336, "float16")
    (whole,) = call(build_attention, prefill, q, k_cache, v_cache, 0, empty(150, 576), outputs=(4,))
    for i in (0, 15, 16, 149):
        (one,) = call(build_attention, decode, q[i : i + 1], k_cache, v_cache, i, empty(1, 576), outputs=(4,))
        assert_close(one, whole[i : i + 1], ATTENTION)


def test_huge_scores_do_not_overflow() -> None:
    """Scores near +-3e4: all weight goes to the largest; a naive softmax would give inf / inf."""
    spec = spec_of((1, 1, 16, 16), "float32", **DECODE)
    k = np.random.default_rng(6).standard_normal((100, 1, 16)).astype("float32")
    k[40] *= 10
    q = 1e3 * k[40].reshape(1, 1, 16)
    v = np.random.default_rng(7).standard_normal((100, 1, 16)).astype("float32")
    caches = reference.pack_keys(k, 336, "float32"), reference.pack_values(v, 336, "float32")
    (y,) = call(build_attention, spec, q.reshape(1, 16), *caches, 99, empty(1, 16), outputs=(4,))
    assert_close(y, v[40], ATTENTION)


@pytest.mark.parametrize("shape", [(4, 4, 32, 32), (6, 2, 20, 12)])
@pytest.mark.parametrize("lanes", [8, 16])
def test_full_attention(shape: tuple[int, int, int, int], lanes: int) -> None:
    heads, kv_heads, head_dim, value_dim = shape
    spec = FullAttentionSpec(*shape, scale=head_dim**-0.5, lanes=lanes)
    rng = np.random.default_rng(8)
    for n in (1, 2, 15, 16, 17, 64, 65, 200):
        q = rng.standard_normal((n, heads, head_dim)).astype("float32")
        k = rng.standard_normal((n, kv_heads, head_dim)).astype("float32")
        v = rng.standard_normal((n, kv_heads, value_dim)).astype("float32")
        inputs = (a.reshape(n, -1) for a in (q, k, v))
        (y,) = call(build_attention_full, spec, *inputs, empty(n, heads * value_dim), outputs=(3,))
        assert_close(y, reference.attention(q, k, v, scale=spec.scale, causal=False), ATTENTION)


def test_oracle_is_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    q = rng.standard_normal((5, 6, 16)).astype("float32")
    k, v = rng.standard_normal((2, 5, 2, 16)).astype("float32")
    heads_first = [torch.from_numpy(a).transpose(0, 1) for a in (q, k, v)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for causal in (True, False):
        expected = sdpa(*heads_first, is_causal=causal, enable_gqa=True).transpose(0, 1).reshape(5, -1).numpy()
        assert_close(reference.attention(q, k, v, scale=0.25, causal=causal), expected, ATTENTION)


def test_query_heads_must_be_a_multiple() -> None:
    with pytest.raises(UnsupportedError, match="9 query heads on 2 key/value heads"):
        AttentionSpec(9, CacheSpec(2, 64, 64, 64), 0.125)
