"""The key/value cache: its layout, and the kernel that appends tokens to it in place.

Layout of one attention layer, T = capacity in tokens (a multiple of 16):

* keys ``[kv_heads, T / 16, head_dim, 16]``: 16 tokens are neighbours: scores are sums of a broadcast query element
  times 16 keys;
* values ``[kv_heads, T, value_dim]``: a token's row is contiguous.

Both are float16 or float32, independently. Kernel arguments, in order::

    k f32[n, kv_heads * head_dim], v f32[n, kv_heads * value_dim], k_cache, v_cache (both written in place), pos i64

In Relax: ``call_tir_inplace(kernel, Tuple([k, v, k_cache, v_cache, pos]), [2, 3], [k_cache.ty, v_cache.ty])``.
Token i goes to position pos + i; 0 <= pos and pos + n <= T (not checked: the session bounds it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.checks import check_choice, check_lanes, check_positive
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.team import Phase, TeamKernel, standalone
from bitwright.errors import UnsupportedError

BLOCK = 16
"""Tokens that are neighbours in the key cache."""

CacheDtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class CacheSpec:
    """Shape and types of one layer's cache: see the module docstring."""

    kv_heads: int
    head_dim: int
    value_dim: int
    capacity: int
    key_dtype: CacheDtype = "float16"
    value_dtype: CacheDtype = "float16"

    def __post_init__(self) -> None:
        for name in ("kv_heads", "head_dim", "value_dim", "capacity"):
            check_positive(name, getattr(self, name))
        for name in ("key_dtype", "value_dtype"):
            check_choice(name, getattr(self, name), ("float16", "float32"))
        if self.capacity % BLOCK:
            raise UnsupportedError(
                f"a cache of {self.capacity} tokens",
                where="cache spec",
                limit=f"the capacity is a multiple of {BLOCK}",
                remedy=f"use {-(-self.capacity // BLOCK) * BLOCK}",
            )

    @property
    def key_shape(self) -> tuple[int, int, int, int]:
        return (self.kv_heads, self.capacity // BLOCK, self.head_dim, BLOCK)

    @property
    def value_shape(self) -> tuple[int, int, int]:
        return (self.kv_heads, self.capacity, self.value_dim)


@dataclass(frozen=True)
class AppendSpec:
    """The append kernel of one cache; ``rows`` 1 for decode, None for a symbolic number of tokens."""

    cache: CacheSpec
    rows: Literal[1] | None = None
    lanes: int = 8

    def __post_init__(self) -> None:
        check_lanes(self.lanes)

    @property
    def name(self) -> str:
        return f"cache_append_{self.cache.kv_heads}x{self.cache.head_dim}"


def append_team_kernel(spec: AppendSpec) -> TeamKernel:
    """The append kernel of one token (``rows=1``): k, v, k_cache, v_cache, pos (module docstring); no results."""
    cache = spec.cache
    return TeamKernel(
        spec.name,
        arguments=(
            TensorSpec("k", "float32", (1, cache.kv_heads * cache.head_dim)),
            TensorSpec("v", "float32", (1, cache.kv_heads * cache.value_dim)),
            TensorSpec("k_cache", cache.key_dtype, cache.key_shape),
            TensorSpec("v_cache", cache.value_dtype, cache.value_shape),
            TensorSpec("pos", "int64", ()),
        ),
        results=0,
        phases=(Phase(lambda buffers, _thread, _threads: _append_row(spec, buffers, 0), split=False),),
    )


def build_cache_append(spec: AppendSpec) -> Any:
    """PrimFunc: k, v, k_cache, v_cache, pos (module docstring)."""
    if spec.rows == 1:
        return standalone(append_team_kernel(spec), 1)

    from bitwright.codegen.builder import kernel, symbol
    from bitwright.codegen.rowloop import for_rows

    cache = spec.cache
    with kernel(spec.name) as k:
        n = symbol("n")
        buffers = {
            "k": k.tensor("k", (n, cache.kv_heads * cache.head_dim), "float32"),
            "v": k.tensor("v", (n, cache.kv_heads * cache.value_dim), "float32"),
            "k_cache": k.tensor("k_cache", cache.key_shape, cache.key_dtype),
            "v_cache": k.tensor("v_cache", cache.value_shape, cache.value_dtype),
            "pos": k.scalar("pos"),
        }
        width = cache.kv_heads * (cache.head_dim + cache.value_dim)
        for_rows(n, width, lambda i: _append_row(spec, buffers, i))
    return k.func


def _append_row(spec: AppendSpec, buffers: Mapping[str, Any], i: Any) -> None:
    """Write row ``i`` of k and v to position pos + i."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import load, loop
    from bitwright.codegen.vectormath import for_spans, store_float

    cache, keys, values = spec.cache, buffers["k"], buffers["v"]
    at = T.Bind(buffers["pos"] + i)
    block, lane = T.Bind(T.floordiv(at, T.int64(BLOCK))), T.Bind(T.floormod(at, T.int64(BLOCK)))
    with loop(cache.kv_heads) as head:
        with loop(cache.head_dim) as d:
            key = keys[i, head * cache.head_dim + d]
            T.buffer_store(buffers["k_cache"], T.cast(key, cache.key_dtype), [head, block, d, lane])

        def copy(offset: Any, lanes: int) -> None:
            value = load(values, [i, head * cache.value_dim + offset], lanes)
            store_float(buffers["v_cache"], value, [head, at, offset], lanes)

        for_spans(cache.value_dim, spec.lanes, copy)
