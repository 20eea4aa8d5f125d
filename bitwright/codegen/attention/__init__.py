"""Attention kernels.

========================================== ==========================================================================
``build_attention(AttentionSpec(...))``      q f32[n, heads * D], k_cache, v_cache, pos i64, y f32[n, heads * Dv]
                                             (caches laid out as in :mod:`bitwright.codegen.cache`, tokens 0..pos+n-1
                                             already appended; query i sits at position pos + i). ``rows=1``: n is 1.
                                             Else, where caches keep recent tokens, the rows that k and v are columns of
                                             stand before pos.
``build_attention_full(FullAttentionSpec)``  q f32[n, heads * D], k f32[n, kv_heads * D], v f32[n, kv_heads * Dv],
                                             y f32[n, heads * Dv]
========================================== ==========================================================================

y is the output. Arithmetic is float32; a float16 cache is widened on load. ``pos`` stands among the inputs, where
Relax's ``call_tir`` puts scalars: ``call_tir(kernel, Tuple([q, k_cache, v_cache, pos]), type of y)`` with ``pos`` the
int64 symbol itself. Nothing of the cache beyond position pos + n - 1 reaches the result, whatever it holds, nor
anything before the window.
"""

from __future__ import annotations

from typing import Any

from bitwright.codegen.attention.spec import AttentionSpec, FullAttentionSpec
from bitwright.codegen.team import TeamKernel, standalone

__all__ = ["AttentionSpec", "FullAttentionSpec", "attention_team_kernel", "build_attention", "build_attention_full"]


def attention_team_kernel(spec: AttentionSpec) -> TeamKernel:
    """The decode kernel (``rows=1``) for a team: every thread attends to a part of the context, then all is merged."""
    from bitwright.codegen.attention.decode import attention_team_kernel as make

    return make(spec)


def build_attention(spec: AttentionSpec) -> Any:
    """PrimFunc of causal attention over a cache: the decode kernel for ``rows=1``, else the prefill kernel."""
    if spec.rows == 1:
        return standalone(attention_team_kernel(spec), spec.threads)
    from bitwright.codegen.attention.prefill import build as build_prefill

    return build_prefill(spec)


def build_attention_full(spec: FullAttentionSpec) -> Any:
    """PrimFunc of unmasked attention without a cache."""
    from bitwright.codegen.attention.full import build

    return build(spec)
