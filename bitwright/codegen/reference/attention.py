"""NumPy oracles of the attention kernels and of the cache layout, computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
BLOCK = 16


def pack_keys(keys: Floats, capacity: int, dtype: str, fill: float = 0.0) -> NDArray[Any]:
    """keys[t, kv_heads, D] as a key cache [kv_heads, capacity / 16, D, 16]; unused tokens hold ``fill``."""
    tokens, heads, dim = keys.shape
    padded = np.full((capacity, heads, dim), fill, dtype)
    padded[:tokens] = keys
    return np.ascontiguousarray(padded.reshape(capacity // BLOCK, BLOCK, heads, dim).transpose(2, 0, 3, 1))


def pack_values(values: Floats, capacity: int, dtype: str, fill: float = 0.0) -> NDArray[Any]:
    """values[t, kv_heads, Dv] as a value cache [kv_heads, capacity, Dv]; unused tokens hold ``fill``."""
    tokens, heads, dim = values.shape
    padded = np.full((heads, capacity, dim), fill, dtype)
    padded[:, :tokens] = values.transpose(1, 0, 2)
    return padded


def attention(
    q: Floats,
    keys: NDArray[Any],
    values: NDArray[Any],
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    causal: bool = True,
    recent: tuple[Floats, NDArray[Any], NDArray[Any]] | None = None,
    run: int = 0,
) -> Floats:
    """q[n, heads, D], keys[t, kv_heads, D], values[t, kv_heads, Dv] -> [n, heads * Dv].

    The queries are the last n of the t tokens. Causal: a query at position p sees keys p-window+1 .. p (without a
    window 0 .. p); otherwise every key. ``recent``: other queries, keys and values, which take the place of a query
    and of the tokens of its own run of ``run`` where these meet.
    """
    n, heads, _ = q.shape
    tokens, kv_heads, _ = keys.shape
    group = heads // kv_heads
    k = np.repeat(keys.astype(np.float64), group, axis=1)
    v = np.repeat(values.astype(np.float64), group, axis=1)
    scores = np.einsum("ihd,thd->hit", q.astype(np.float64), k) * scale
    query_at, key_at = np.arange(tokens - n, tokens)[:, None], np.arange(tokens)[None, :]
    if recent is not None:
        near = key_at // run == query_at // run
        k_near, v_near = (np.repeat(x.astype(np.float64), group, axis=1) for x in recent[1:])
        scores = np.where(near, np.einsum("ihd,thd->hit", recent[0].astype(np.float64), k_near) * scale, scores)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if causal:
        visible = key_at <= query_at
        if window:
            visible &= key_at > query_at - window
        scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    result = np.einsum("hit,thd->ihd", weights, v)
    if recent is not None:
        result += np.einsum("hit,thd->ihd", np.where(near, weights, 0), v_near - v)
    return np.asarray(result.reshape(n, -1), np.float32)
