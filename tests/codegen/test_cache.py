"""The append kernel writes exactly its tokens, in the layout that the oracle packs."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.cache import AppendSpec, CacheSpec, build_cache_append
from bitwright.codegen.columns import Columns
from bitwright.codegen.reference.attention import pack_keys, pack_values
from bitwright.errors import UnsupportedError
from bitwright.scheme import CacheScheme

from .harness import call

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize(("key_dtype", "value_dtype"), [("float16", "float16"), ("float32", "float16")])
@pytest.mark.parametrize(("heads", "head_dim", "value_dim"), [(3, 64, 64), (1, 20, 12)])
def test_appends_in_place(
    heads: int, head_dim: int, value_dim: int, key_dtype: str, value_dtype: str, rows: int | None
) -> None:
    key, value = CacheScheme("k", 16 if key_dtype == "float16" else 32), CacheScheme("v", 16)
    cache = CacheSpec(heads, head_dim, value_dim, 64, key, value)
    spec = AppendSpec(cache, rows=rows)  # type: ignore[arg-type]
    keys = RNG.standard_normal((64, heads, head_dim)).astype("float32")
    values = RNG.standard_normal((64, heads, value_dim)).astype("float32")
    k_cache = np.full(cache.keys.shape, np.nan, key_dtype)
    v_cache = np.full(cache.values.shape, np.nan, value_dtype)
    pos = 0
    for n in (1, 1, 1) if rows else (1, 16, 14, 33):  # across block borders, to the last token of the capacity
        k, v = (a[pos : pos + n].reshape(n, -1) for a in (keys, values))
        k_cache, v_cache = call(build_cache_append, spec, k, v, k_cache, v_cache, pos, outputs=(2, 3))
        pos += n
        np.testing.assert_array_equal(k_cache, pack_keys(keys[:pos], 64, key_dtype, np.nan))
        np.testing.assert_array_equal(v_cache, pack_values(values[:pos], 64, value_dtype, np.nan))


def test_keys_and_values_may_be_columns_of_one_matrix() -> None:
    cache = CacheSpec(3, 20, 12, 64, CacheScheme("k", 16), CacheScheme("v", 16))
    spec = AppendSpec(cache, key_source=Columns(60, 100, 0), value_source=Columns(36, 100, 61))
    x = RNG.standard_normal((9, 100)).astype("float32")
    caches = np.full(cache.keys.shape, np.nan, "float16"), np.full(cache.values.shape, np.nan, "float16")
    k_cache, v_cache = call(build_cache_append, spec, x, x, *caches, 5, outputs=(2, 3))
    keys, values = np.full((14, 3, 20), np.nan, "float32"), np.full((14, 3, 12), np.nan, "float32")
    keys[5:], values[5:] = x[:, :60].reshape(9, 3, 20), x[:, 61:97].reshape(9, 3, 12)
    np.testing.assert_array_equal(k_cache, pack_keys(keys, 64, "float16", np.nan))
    np.testing.assert_array_equal(v_cache, pack_values(values, 64, "float16", np.nan))


def test_large_append_goes_parallel_and_writes_the_same() -> None:
    cache = CacheSpec(4, 64, 64, 512)
    keys, values = RNG.standard_normal((2, 500, 4, 64)).astype("float32")
    empty = np.full(cache.keys.shape, np.nan, "float16"), np.full(cache.values.shape, np.nan, "float16")
    inputs = keys.reshape(500, -1), values.reshape(500, -1), *empty
    k_cache, v_cache = call(build_cache_append, AppendSpec(cache), *inputs, 0, outputs=(2, 3))
    np.testing.assert_array_equal(k_cache, pack_keys(keys, 512, "float16", np.nan))
    np.testing.assert_array_equal(v_cache, pack_values(values, 512, "float16", np.nan))


def test_capacity_must_be_whole_blocks() -> None:
    with pytest.raises(UnsupportedError, match="a cache of 100 tokens") as caught:
        CacheSpec(1, 64, 64, 100)
    assert "use 112" in str(caught.value)
