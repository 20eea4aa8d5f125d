"""Rotary position embedding (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.frontend.interpreter.registry import op


@op("RotaryEmbedding", 23)
def rotary_embedding(
    x: Tensor,
    cos_table: Tensor,
    sin_table: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate pairs of each head's first R = ``rotary_embedding_dim`` (0: all) values by position-dependent angles.

    Args:
        x: [batch, n, heads * D] (needs ``num_heads``) or [batch, heads, n, D].
        cos_table: [positions, R/2] with ``positions``, else [batch, n, R/2]; ``sin_table`` likewise.
        positions: int64 [batch, n].
        interleaved: pairs are (2i, 2i + 1) rather than (i, i + R/2).
    """
    if x.dim() == 3 and not num_heads:
        raise ValueError("num_heads must be given with a three-dimensional input")
    heads = x.reshape(*x.shape[:2], num_heads, -1) if x.dim() == 3 else x.transpose(1, 2)  # [batch, n, heads, D]
    size = rotary_embedding_dim or heads.shape[-1]
    cos = (cos_table if positions is None else cos_table[positions]).unsqueeze(2)  # [batch, n, 1, R/2]
    sin = (sin_table if positions is None else sin_table[positions]).unsqueeze(2)
    if 2 * cos.shape[-1] != size:
        raise ValueError(f"the tables hold {cos.shape[-1]} angles, {size // 2} are needed")
    rotated, rest = heads[..., :size], heads[..., size:]
    a, b = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, -1)
    pair = (a * cos - b * sin, a * sin + b * cos)
    result = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    if rest.shape[-1]:
        result = torch.cat((result, rest), -1)
    return result.flatten(-2) if x.dim() == 3 else result.transpose(1, 2)
