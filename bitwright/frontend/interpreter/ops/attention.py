"""Attention with grouped heads, a cache, causal and sliding-window masks and soft capping."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.frontend.interpreter.registry import op

Stored = tuple[Tensor, Tensor] | None

QUERY_BLOCK = 512
"""Queries whose scores or mask are held at once where one is needed: memory grows with the context, not with its
square.
"""


@op("Attention", 23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    is_causal: int = 0,
    stored: Stored = None,
    run: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(cap(q k' * scale) + mask) v, cap(x) = softcap * tanh(x / softcap).

    Causal means that query i, at absolute position p + i after p past keys, sees keys 0 ... p + i. (The first ONNX
    reference of this op aligned the mask to the first key, which makes decoding with a cache see one key only;
    canonical graphs mean the aligned-to-the-end form.)

    Args:
        q: [1, n, H * D] (heads given by ``q_num_heads``) or [1, H, n, D]; k [1, n, Hkv * D] or [1, Hkv, n, D]; v
            likewise.
        mask: bool (true: visible) or float (added), broadcasting to [1, H, n, p + n].
        past_key: [1, Hkv, p, D]; ``past_value`` [1, Hkv, p, Dv].
        scale: 1/sqrt(D) where absent.
        stored: keys and values that take the place of k and v for queries of later runs of ``run`` tokens (0: for all
            queries); causal and without a past.

    Returns:
        y shaped as q, with Dv for D; present_key [1, Hkv, p + n, D]; present_value [1, Hkv, p + n, Dv].
    """
    return _attention(
        q, k, v, mask, past_key, past_value, q_num_heads, kv_num_heads, scale, softcap, bool(is_causal), 0, stored, run
    )


@op("Attention", 1, domain="bitwright")
def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    is_causal: int = 0,
    window: int = 0,
    stored: Stored = None,
    run: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """``attention`` whose query at position t sees keys t - window + 1 ... t only (0: all of them)."""
    if window and not is_causal:
        raise ValueError("a window is defined for causal attention only")
    inputs, heads = (q, k, v, mask, past_key, past_value), (q_num_heads, kv_num_heads)
    return _attention(*inputs, *heads, scale, softcap, bool(is_causal), window, stored, run)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float | None,
    softcap: float,
    causal: bool,
    window: int,
    stored: Stored,
    run: int,
) -> tuple[Tensor, Tensor, Tensor]:
    flat = q.dim() == 3
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    k = k if past_key is None else torch.cat((past_key, k), 2)
    v = v if past_value is None else torch.cat((past_value, v), 2)
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} KV heads do not divide {q.shape[1]} query heads")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if stored is None:
        y = _scaled_dot_product(q, k, v, mask, scale, softcap, causal, window)
    else:
        if not causal or mask is not None or (past_key is not None and past_key.shape[2]):
            raise ValueError("what caches give back stands apart only in causal attention without a mask and a past")
        back = _heads(stored[0], kv_num_heads), _heads(stored[1], kv_num_heads)
        if run:
            y = _seen_from_runs(q, (k, v), back, run, scale, softcap, window)
        else:
            y = _scaled_dot_product(q, *back, None, scale, softcap, causal, window)
    return y.transpose(1, 2).flatten(2) if flat else y, k, v


def _heads(x: Tensor, heads: int) -> Tensor:
    """[1, n, heads * D] as [1, heads, n, D]; four-dimensional input is that already."""
    if x.dim() == 4:
        return x
    if not heads:
        raise ValueError("q_num_heads and kv_num_heads must be given with three-dimensional inputs")
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float, causal: bool, window: int
) -> Tensor:
    """q [1, H, n, D], k [1, Hkv, t, D], v [1, Hkv, t, Dv] -> [1, H, n, Dv]."""
    n, total = q.shape[2], k.shape[2]
    past = total - n
    unlimited = not window or window >= total
    if not softcap and mask is None and unlimited and (not causal or past == 0 or n == 1):
        return _fused(q, k, v, scale=scale, is_causal=causal and n > 1)
    blocks = []
    for start in range(0, n, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, n)
        first = max(0, past + start - window + 1) if causal and not unlimited else 0
        last = past + stop if causal else total
        bias = _bias(start + past, stop + past, first, last, window, q) if causal else None
        if mask is not None:
            bias = _combine(bias, mask.expand(1, q.shape[1], n, total)[:, :, start:stop, first:last], q)
        chosen = (q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last])
        blocks.append(_capped(*chosen, bias, scale, softcap) if softcap else _fused(*chosen, scale=scale, bias=bias))
    return torch.cat(blocks, 2)


def _seen_from_runs(
    q: Tensor,
    own: tuple[Tensor, Tensor],
    stored: tuple[Tensor, Tensor],
    run: int,
    scale: float,
    softcap: float,
    window: int,
) -> Tensor:
    """As ``_scaled_dot_product`` (causal), but of runs before its own a query sees ``stored`` keys and values."""
    n = q.shape[2]
    rows_at_once = QUERY_BLOCK // run * run
    blocks = []
    for start in range(0, n, rows_at_once):
        stop = min(start + rows_at_once, n)
        first = max(0, start - window + 1) if window else 0
        rows = torch.arange(start, stop, device=q.device)[:, None]
        bias = _bias(start, stop, first, stop, window, q)
        columns = torch.arange(first, stop, device=q.device)
        before = bias.masked_fill(columns // run == rows // run, float("-inf"))
        within = bias[:, start - first :].masked_fill(columns[start - first :] // run != rows // run, float("-inf"))
        k, v = (torch.cat((x[:, :, first:stop], y[:, :, start:stop]), 2) for x, y in zip(stored, own, strict=True))
        chosen = (q[:, :, start:stop], k, v, torch.cat((before, within), 1))
        blocks.append(_capped(*chosen, scale, softcap) if softcap else _fused(*chosen[:3], scale=scale, bias=chosen[3]))
    return torch.cat(blocks, 2)


def _bias(row_start: int, row_stop: int, key_start: int, key_stop: int, window: int, like: Tensor) -> Tensor:
    """0 where the query at absolute position i sees key j, -inf elsewhere: [rows, keys] in the type of ``like``."""
    rows = torch.arange(row_start, row_stop, device=like.device)[:, None]
    keys = torch.arange(key_start, key_stop, device=like.device)
    hidden = keys > rows
    if window:
        hidden |= keys <= rows - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _combine(bias: Tensor | None, mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, float("-inf"))
    return mask if bias is None else mask + bias


def _fused(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Torch's fused kernel; it never holds all scores at once."""
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, is_causal=is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _capped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float) -> Tensor:
    """The formula in steps: the fused kernel cannot cap scores. KV heads are broadcast to their group, not copied."""
    group = q.shape[1] // k.shape[1]
    queries = _grouped(q, group)  # [1, Hkv, group, n, D]
    scores = softcap * torch.tanh(queries @ k.unsqueeze(2).transpose(-1, -2) * (scale / softcap))
    if bias is not None:
        scores = scores + (bias if bias.dim() == 2 else _grouped(bias, group))
    return (torch.softmax(scores, -1) @ v.unsqueeze(2)).flatten(1, 2)


def _grouped(x: Tensor, group: int) -> Tensor:
    """[1, H, n, m] as [1, H / group, group, n, m]."""
    return x.reshape(x.shape[0], -1, group, *x.shape[2:])
