"""How fast decode attention reads caches of each format, beside a plain read of as many bytes, alternating.

    python -m benchmarks.decode_attention --tokens 2048 --mib 192 k16,v16 k8g32,v8g32 k4g32,v4g32

One call stands for many layers: as many key/value heads as fill ``--mib``, so that nothing is found in a cache.
Queries, keys and values are normally distributed: the kernel spends less on chunks without outstanding weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray

from bitwright.autotune.bandwidth import build_read_bandwidth, measure_read_bandwidth
from bitwright.codegen.attention import AttentionSpec, build_attention
from bitwright.codegen.builder import build, host_features, read_host_target
from bitwright.codegen.cache import CacheSpec
from bitwright.codegen.cache_layout import PackedCache
from bitwright.codegen.isa import select_isa
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.reference.cache import pack
from bitwright.runtime.arrays import aligned_zeros
from bitwright.scheme import CacheScheme
from bitwright.target import Target

ROUNDS = 5


def spec_of(pair: str, heads: int, options: argparse.Namespace, threads: int) -> AttentionSpec:
    """Attention of ``heads`` key/value heads on caches named ``k...,v...``."""
    key, value = (CacheScheme.parse(name) for name in pair.split(","))
    width = options.head_size
    cache = CacheSpec(heads, width, width, -(-options.tokens // 32) * 32, key, value)
    isa = select_isa(host_features(), Target.parse("native").tune)
    return AttentionSpec(options.group * heads, cache, width**-0.5, rows=1, isa=isa, threads=threads)


def cached(tensor: TensorSpec, layout: PackedCache | None, rng: np.random.Generator) -> NDArray[Any]:
    """A cache full of normally distributed rows, the same in every head."""
    array = aligned_zeros(tensor.shape, tensor.dtype)
    if layout is None:
        array[:] = rng.standard_normal(tensor.shape[1:])
        return array
    rows = rng.standard_normal((layout.capacity, 1, layout.width)).astype("float32")
    array[:] = pack(rows, dataclasses.replace(layout, heads=1))
    return array


def attention_call(spec: AttentionSpec, tokens: int) -> Callable[[], Any]:
    """The kernel as sessions compile it, bound to such caches."""
    rng, cache = np.random.default_rng(0), spec.cache
    query = aligned_zeros((1, spec.heads * cache.head_dim), "float32")
    query[:] = rng.standard_normal(query.shape)
    arrays = [query, cached(cache.keys, cache.packed_keys, rng), cached(cache.values, cache.packed_values, rng)]
    arguments: list[Any] = [tvm_ffi.from_dlpack(array) for array in arrays]
    result = tvm_ffi.from_dlpack(aligned_zeros((1, spec.heads * cache.value_dim), "float32"))
    kernel = build(build_attention(spec), Target.parse("native").tvm())[spec.name]
    return lambda: kernel(*arguments, tokens - 1, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", metavar="K,V")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--mib", type=int, default=192)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--group", type=int, default=3, help="query heads per key/value head")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    options = parser.parse_args()
    isa = select_isa(host_features(), Target.parse("native").tune)
    read = build(build_read_bandwidth(isa), read_host_target())["read_bandwidth"]
    for pair in options.caches:
        heads = round(options.mib * 2**20 / (spec_of(pair, 1, options, 1).cache.token_bytes * options.tokens))
        for threads in options.threads:
            spec = spec_of(pair, max(heads, 1), options, threads)
            nbytes = spec.cache.token_bytes * options.tokens
            call = attention_call(spec, options.tokens)
            call()
            times: list[float] = []
            plain: list[float] = []
            for _ in range(ROUNDS):
                measured = measure_read_bandwidth(read, isa, threads, {"cache": nbytes}, seconds=0.1)
                plain.extend(m.bytes_per_second for m in measured if m.threads == threads)
                for _ in range(2):
                    start = time.perf_counter()
                    call()
                    times.append(time.perf_counter() - start)
            rate, ceiling = nbytes / statistics.median(times), statistics.median(plain)
            each = statistics.median(times) * 1e9 / (options.tokens * spec.cache.kv_heads)
            print(
                f"{pair}, {threads} threads, {nbytes / 2**20:.0f} MiB: {rate / 1e9:.1f} GB/s of {ceiling / 1e9:.1f}"
                f" ({rate / ceiling:.0%}), {each:.2f} ns per token and key/value head",
                flush=True,
            )


if __name__ == "__main__":
    main()
