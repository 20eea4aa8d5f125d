"""How long attention takes in decoding over caches that were measured, and over others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bitwright.autotune.interpolation import between, by_working_set
from bitwright.autotune.workload import Workload
from bitwright.errors import UnsupportedError
from bitwright.scheme import CacheScheme

Times = Mapping[tuple[Workload, int], float]
"""Seconds by kernel and working set."""

OTHER_CACHES_ERROR = 0.2
"""Relative error of attention over caches that were not measured: layouts of equal bytes differ by as much."""


def attention_seconds(times: Times, wanted: Workload, working_set: int | None) -> tuple[float, float]:
    """Seconds and expected relative error.

    Linear in the tokens in the cache; of two unlike caches half of what each costs beside one like it; between
    measured caches by bytes.
    """
    known = _measured(times, wanted, working_set)
    if wanted.scheme in known:
        return known[wanted.scheme], 0.05
    keys, values = caches_of(wanted.scheme)
    alike = [keys.name + values_like(keys), keys_like(values) + values.name]
    if wanted.scheme not in alike:
        halves = [attention_seconds(times, replace(wanted, scheme=name), working_set) for name in alike]
        return sum(seconds for seconds, _ in halves) / 2, max(error for _, error in halves)
    by_bytes = {_cache_bytes(name, wanted): seconds for name, seconds in known.items()}
    if len(by_bytes) < 2:
        raise UnsupportedError(
            f"no latency is known for attention over caches of {wanted.scheme}",
            where=str(wanted),
            limit="two kinds of caches, measured at two contexts each, at least",
            remedy="measure them with `bitwright latency --caches`",
        )
    return between(by_bytes, _cache_bytes(wanted.scheme, wanted)), OTHER_CACHES_ERROR


def _measured(times: Times, wanted: Workload, working_set: int | None) -> dict[str, float]:
    """Seconds of the same heads and context by caches, as far as they were measured at two contexts."""
    *heads, context = wanted.shape
    found: dict[str, dict[int, dict[int, float]]] = {}
    for (work, size), seconds in times.items():
        if replace(work, shape=wanted.shape, scheme=wanted.scheme) == wanted and work.shape[:-1] == tuple(heads):
            found.setdefault(work.scheme, {}).setdefault(work.shape[-1], {})[size] = seconds
    return {
        name: between({at: by_working_set(sizes, working_set) for at, sizes in by.items()}, context, beyond=True)
        for name, by in found.items()
        if len(by) > 1
    }


def caches_of(pair: str) -> tuple[CacheScheme, CacheScheme]:
    """Schemes of K and V from ``k4g32v4row``. Raises UsageError: something else."""
    key, letter, value = pair.partition("v")
    return CacheScheme.parse(key), CacheScheme.parse(letter + value)


def _cache_bytes(pair: str, attention: Workload) -> int:
    """Of one token."""
    _, kv_heads, head_dim, _ = attention.shape
    return sum(scheme.bytes_per_token(kv_heads, head_dim) for scheme in caches_of(pair))


def values_like(keys: CacheScheme) -> str:
    """Name of the V scheme that stores what a K scheme stores."""
    return f"v{keys.name[1:]}"


def keys_like(values: CacheScheme) -> str:
    return f"k{values.name[1:]}"
