"""The kernels of a decode step by workload: what the latency table times.

============= =================================== ================================================================
op            shape                               scheme
============= =================================== ================================================================
``linear``    outputs, inputs                     a linear scheme (``u4g32a8``), or those of runs of rows
``attention`` heads, kv_heads, head_dim, context  of the caches (``k16v16``)
============= =================================== ================================================================

The rest of a step is not timed kernel by kernel but as a whole (``anchor``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from bitwright.autotune.step_kernel import StepKernel, of_team
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import Isa
from bitwright.errors import UnsupportedError
from bitwright.runs import parse_weights
from bitwright.scheme import CacheScheme

WEIGHTS = frozenset({"codes", "scales", "zeros", "weights"})
CACHES = frozenset({"k_cache", "v_cache"})
_CAPACITY = 64


def decode_kernel(workload: Workload, isa: Isa) -> StepKernel:
    """The kernel of one token.

    Raises:
        UnsupportedError: there is no such operation, or no kernel for it.
    """
    if workload.op not in _BUILDERS or workload.m != 1:
        raise UnsupportedError(
            f"no kernel to time for {workload}", limit=f"one token of {', '.join(sorted(_BUILDERS))}"
        )
    return _BUILDERS[workload.op](workload, isa)


def _linear(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.linear import linear_spec, linear_team_kernel

    outputs, inputs = work.shape
    spec = linear_spec(parse_weights(work.scheme), outputs, inputs, rows=1)
    kernel = linear_team_kernel(spec, isa, "linear")
    # Tensors of the second run and further ones are numbered.
    cold = frozenset(s.name for s in kernel.arguments if re.sub(r"_\d+$", "", s.name) in WEIGHTS)
    return of_team(kernel, work.threads, cold)


def _cache(work: Workload, kv_heads: int, head_dim: int, capacity: int) -> Any:
    from bitwright.codegen.cache import CacheSpec

    found = re.fullmatch(r"(k\w+?)(v\w+)", work.scheme)
    if found is None:
        raise UnsupportedError(f"'{work.scheme}' are no caches", where=str(work), limit="such as k16v16 or k4g32v4row")
    key, value = (CacheScheme.parse(name) for name in found.groups())
    return CacheSpec(kv_heads, head_dim, head_dim, capacity, key, value)


def _attention(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.attention import AttentionSpec, attention_team_kernel

    heads, kv_heads, head_dim, context = work.shape
    cache = _cache(work, kv_heads, head_dim, -(-context // _CAPACITY) * _CAPACITY)
    spec = AttentionSpec(heads, cache, head_dim**-0.5, rows=1, isa=isa, threads=work.threads)
    return of_team(attention_team_kernel(spec), work.threads, CACHES, position=context - 1)


_BUILDERS: dict[str, Callable[[Workload, Isa], StepKernel]] = {"linear": _linear, "attention": _attention}
