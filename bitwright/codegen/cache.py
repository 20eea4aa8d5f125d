"""The key/value cache: its layout, and the kernel that appends tokens to it in place.

Layout of one attention layer, T = capacity in tokens (a multiple of 16), where K or V are floats:

* keys ``[kv_heads, T / 16, head_dim, 16]``: 16 tokens are neighbours: scores are sums of a broadcast query element
  times 16 keys;
* values ``[kv_heads, T, value_dim]``: a token's row is contiguous.

Packed ones are ``u8[kv_heads, head_bytes]``: :mod:`bitwright.codegen.cache_layout`. K and V have schemes of
their own. Kernel arguments, in order::

    k f32[n, kv_heads * head_dim], v f32[n, kv_heads * value_dim], k_cache, v_cache (both written in place), pos i64

In Relax: ``call_tir_inplace(kernel, Tuple([k, v, k_cache, v_cache, pos]), [2, 3], [k_cache.ty, v_cache.ty])``.
Token i goes to position pos + i; 0 <= pos and pos + n <= T (not checked: the session bounds it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.cache_layout import PackedCache, why_no_packed_cache
from bitwright.codegen.checks import check_lanes, check_positive
from bitwright.codegen.columns import Columns
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.team import Phase, TeamKernel, standalone
from bitwright.errors import UnsupportedError
from bitwright.scheme import CacheScheme

BLOCK = 16
"""Tokens that are neighbours in a float key cache."""

PARALLEL_ELEMENTS = 32768
"""Elements to quantize from which a parallel launch (about 4 us) pays."""


@dataclass(frozen=True)
class CacheSpec:
    """Shape and schemes of one layer's cache: see the module docstring."""

    kv_heads: int
    head_dim: int
    value_dim: int
    capacity: int
    key: CacheScheme = CacheScheme("k")  # noqa: RUF009 - a frozen value
    value: CacheScheme = CacheScheme("v")  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        for name in ("kv_heads", "head_dim", "value_dim", "capacity"):
            check_positive(name, getattr(self, name))
        if self.capacity % BLOCK:
            raise UnsupportedError(
                f"a cache of {self.capacity} tokens",
                where="cache spec",
                limit=f"the capacity is a multiple of {BLOCK}",
                remedy=f"use {-(-self.capacity // BLOCK) * BLOCK}",
            )
        for scheme, tensor, width in ((self.key, "k", self.head_dim), (self.value, "v", self.value_dim)):
            why = why_no_packed_cache(scheme, width)
            if scheme.tensor != tensor or why is not None:
                raise UnsupportedError(
                    f"a {tensor} cache stored as {scheme}",
                    where="cache spec",
                    limit=why or "schemes of keys begin with k, of values with v",
                    remedy="use another group size, row, or 16 bits",
                )
        runs = {scheme.recent for scheme in (self.key, self.value) if not scheme.is_float}
        if len(runs) > 1:
            raise UnsupportedError(
                f"keys stored as {self.key} with values stored as {self.value}",
                where="cache spec",
                limit="keys and values of a layer keep equally many recent tokens",
                remedy=f"end both names in r{max(runs)}, or neither",
            )

    @property
    def packed_keys(self) -> PackedCache | None:
        """The layout of packed keys; None for floats."""
        return None if self.key.is_float else PackedCache(self.key, self.kv_heads, self.head_dim, self.capacity)

    @property
    def packed_values(self) -> PackedCache | None:
        """The layout of packed values; None for floats."""
        return None if self.value.is_float else PackedCache(self.value, self.kv_heads, self.value_dim, self.capacity)

    @property
    def is_float(self) -> bool:
        return self.key.is_float and self.value.is_float

    @property
    def recent(self) -> int:
        """Tokens of a run whose members see each other unpacked; 0 for none."""
        return max(self.key.recent, self.value.recent)

    @property
    def keys(self) -> TensorSpec:
        """The K cache as a tensor."""
        shape = (self.kv_heads, self.capacity // BLOCK, self.head_dim, BLOCK)
        return _tensor("k_cache", self.key, self.packed_keys, shape)

    @property
    def values(self) -> TensorSpec:
        """The V cache as a tensor."""
        shape = (self.kv_heads, self.capacity, self.value_dim)
        return _tensor("v_cache", self.value, self.packed_values, shape)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token, K and V."""
        return self.key.bytes_per_token(self.kv_heads, self.head_dim) + self.value.bytes_per_token(
            self.kv_heads, self.value_dim
        )

    def sources(self, key: Columns | None, value: Columns | None) -> tuple[Columns, Columns]:
        """``key`` and ``value``, columns that hold k and v, or where None all columns of a matrix."""
        widths = self.kv_heads * self.head_dim, self.kv_heads * self.value_dim
        return key or Columns.all(widths[0]), value or Columns.all(widths[1])

    @property
    def name(self) -> str:
        """What kernels on such a cache are called after."""
        return f"{self.kv_heads}x{self.head_dim}_{self.key}_{self.value}"


def _tensor(name: str, scheme: CacheScheme, packed: PackedCache | None, floats: tuple[int, ...]) -> TensorSpec:
    if packed is None:
        return TensorSpec(name, f"float{scheme.bits}", floats)
    return TensorSpec(name, "uint8", packed.shape)


@dataclass(frozen=True)
class AppendSpec:
    """The append kernel of one cache; ``rows`` 1 for decode, None for a symbolic number of tokens.

    ``key_source`` and ``value_source``: columns of wider matrices that k and v are, for any number of tokens.
    """

    cache: CacheSpec
    rows: Literal[1] | None = None
    lanes: int = 8
    key_source: Columns | None = None
    value_source: Columns | None = None

    def __post_init__(self) -> None:
        check_lanes(self.lanes)

    @property
    def name(self) -> str:
        return f"cache_append_{self.cache.name}"

    @property
    def sources(self) -> tuple[Columns, Columns]:
        """The columns that k and v are of their matrices."""
        return self.cache.sources(self.key_source, self.value_source)


def append_team_kernel(spec: AppendSpec) -> TeamKernel:
    """The append kernel of one token (``rows=1``): k, v, k_cache, v_cache, pos (module docstring); no results."""
    cache = spec.cache

    def emit(buffers: Mapping[str, Any], _thread: Any, _threads: Any) -> None:
        from bitwright.codegen.builder import loop

        with loop(cache.kv_heads) as head:
            _append(spec, buffers, 0, 1, head)

    return TeamKernel(
        spec.name,
        arguments=(
            TensorSpec("k", "float32", (1, cache.kv_heads * cache.head_dim)),
            TensorSpec("v", "float32", (1, cache.kv_heads * cache.value_dim)),
            cache.keys,
            cache.values,
            TensorSpec("pos", "int64", ()),
        ),
        results=0,
        phases=(Phase(emit, split=False),),
    )


def build_cache_append(spec: AppendSpec) -> Any:
    """PrimFunc: k, v, k_cache, v_cache, pos (module docstring)."""
    if spec.rows == 1:
        return standalone(append_team_kernel(spec), 1)

    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import kernel, loop, symbol
    from bitwright.codegen.rowloop import for_rows
    from bitwright.codegen.stack import aligned_stack

    cache = spec.cache
    with kernel(spec.name) as k:
        n = symbol("n")
        buffers = {
            "k": k.tensor("k", (n, spec.sources[0].total), "float32"),
            "v": k.tensor("v", (n, spec.sources[1].total), "float32"),
            "k_cache": k.tensor("k_cache", cache.keys.shape, cache.keys.dtype),
            "v_cache": k.tensor("v_cache", cache.values.shape, cache.values.dtype),
            "pos": k.scalar("pos"),
        }
        width = cache.kv_heads * (cache.head_dim + cache.value_dim)

        def row(i: Any) -> None:
            with loop(cache.kv_heads) as head:
                _append(spec, buffers, i, n, head)

        def of_head(head: Any) -> None:
            with loop(n) as i:
                _append(spec, buffers, i, n, head)

        if cache.value.is_float and not cache.recent:
            for_rows(n, width, row)
        else:  # tokens of packed values share bytes, recent ones places of a ring: threads must not share a head
            with T.If(n * T.int64(width) >= T.int64(PARALLEL_ELEMENTS)):
                with T.Then(), loop(cache.kv_heads, "parallel") as head:
                    of_head(head)
                with T.Else(), aligned_stack(), loop(cache.kv_heads) as head:
                    of_head(head)
    return k.func


def _append(spec: AppendSpec, buffers: Mapping[str, Any], i: Any, n: Any, head: Any) -> None:
    """Write row ``i`` of the ``n`` rows of k and v, one head of it, to position pos + i."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import load, loop
    from bitwright.codegen.cache_write import write_token
    from bitwright.codegen.vectormath import for_spans, store_float

    cache, keys, values = spec.cache, buffers["k"], buffers["v"]
    at, last = T.Bind(buffers["pos"] + i), buffers["pos"] + (n - 1)
    first_key, first_value = (source.first for source in spec.sources)

    def value(offset: Any, lanes: int) -> Any:
        return load(values, [i, first_value + head * cache.value_dim + offset], lanes)

    if cache.packed_keys is not None:

        def key(offset: Any, lanes: int) -> Any:
            return load(keys, [i, first_key + head * cache.head_dim + offset], lanes)

        write_token(cache.packed_keys, buffers["k_cache"], key, head, at, last, spec.lanes)
    else:
        block, lane = T.Bind(T.floordiv(at, T.int64(BLOCK))), T.Bind(T.floormod(at, T.int64(BLOCK)))
        with loop(cache.head_dim) as d:
            element = keys[i, first_key + head * cache.head_dim + d]
            T.buffer_store(buffers["k_cache"], T.cast(element, cache.keys.dtype), [head, block, d, lane])
    if cache.packed_values is not None:
        write_token(cache.packed_values, buffers["v_cache"], value, head, at, last, spec.lanes)
    else:

        def copy(offset: Any, lanes: int) -> None:
            store_float(buffers["v_cache"], value(offset, lanes), [head, at, offset], lanes)

        for_spans(cache.value_dim, spec.lanes, copy)
