"""The kernels of a decode step by workload: what the latency table times.

============= =================================== ================================================================
op            shape                               scheme
============= =================================== ================================================================
``linear``    outputs, inputs                     a linear scheme (``u4g32a8``)
``attention`` heads, kv_heads, head_dim, context  of the caches (``k16v16``)
``append``    kv_heads, head_dim                  of the caches
``rope``      heads, head_dim                     -
``norm``      width (residual added, RMS)         of the int8 result (``a8g32``); empty: float
``glu``       width                               of the int8 result
``quantize``  width                               of the result
``embedding`` vocabulary, width                   a linear scheme
``argmax``    width                               -
============= =================================== ================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from bitwright.autotune.step_kernel import StepKernel, of_function, of_team
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import TensorSpec
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.errors import UnsupportedError
from bitwright.runs import parse_weights
from bitwright.scheme import CacheScheme

WEIGHTS = frozenset({"codes", "scales", "zeros", "weights"})
CACHES = frozenset({"k_cache", "v_cache"})
_CAPACITY = 64
_EPSILON = 1e-5


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


def _append(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.cache import AppendSpec, append_team_kernel

    kv_heads, head_dim = work.shape
    spec = AppendSpec(_cache(work, kv_heads, head_dim, _CAPACITY), rows=1, lanes=isa.lanes)
    return of_team(append_team_kernel(spec), work.threads, frozenset())


def _rope(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.rope import RopeSpec, build_rope

    heads, head_dim = work.shape
    row, table = TensorSpec("x", "float32", (1, heads * head_dim)), (_CAPACITY, head_dim // 2)
    arguments = (
        row,
        TensorSpec("cos", "float32", table),
        TensorSpec("sin", "float32", table),
        TensorSpec("positions", "int64", (1,)),
        TensorSpec("y", "float32", row.shape),
    )
    spec = RopeSpec(heads, head_dim, head_dim, _CAPACITY, rows=1, lanes=isa.lanes)
    return of_function(build_rope(spec), arguments, 1, zeroed=frozenset({"positions"}))


def _results(work: Workload, width: int) -> tuple[tuple[TensorSpec, ...], QuantizedRows | None]:
    """The results of a kernel that may quantize, and how it does."""
    if not work.scheme:
        return (TensorSpec("y", "float32", (1, width)),), None
    quantized = QuantizedRows.parse(work.scheme)
    return quantized.tensors(1, width), quantized


def _norm(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.norm import NormSpec, build_norm

    (width,) = work.shape
    results, quantized = _results(work, width)
    rows = [TensorSpec(name, "float32", (1, width)) for name in ("x", "residual")]
    gain, total = TensorSpec("gain", "float32", (width,)), TensorSpec("sum", "float32", (1, width))
    spec = NormSpec("rms", width, _EPSILON, False, True, 1, isa.lanes, quantized)
    return of_function(build_norm(spec), (*rows, gain, total, *results), 1 + len(results))


def _glu(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.elementwise import GluSpec, build_glu

    (width,) = work.shape
    results, quantized = _results(work, width)
    spec = GluSpec("silu", width, True, 1, isa.lanes, quantized)
    return of_function(build_glu(spec), (TensorSpec("x", "float32", (1, 2 * width)), *results), len(results))


def _quantize(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.activation import build_quantize_activation

    (width,) = work.shape
    results, quantized = _results(work, width)
    if quantized is None:
        raise UnsupportedError(f"{work} quantizes nothing", limit="a scheme such as a8g32")
    function = build_quantize_activation(width, quantized, isa, 1)
    return of_function(function, (TensorSpec("x", "float32", (1, width)), *results), len(results))


def _embedding(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.embedding import build_embedding, embedding_arguments
    from bitwright.codegen.linear import linear_spec

    vocabulary, width = work.shape
    table = linear_spec(parse_weights(work.scheme), vocabulary, width, rows=1)
    function = build_embedding(table, isa)
    return of_function(function, embedding_arguments(table, isa), 1, zeroed=frozenset({"ids"}), cold=WEIGHTS)


def _argmax(work: Workload, isa: Isa) -> StepKernel:
    from bitwright.codegen.argmax import argmax_team_kernel

    return of_team(argmax_team_kernel(work.shape[0], isa.lanes), work.threads, frozenset())


_BUILDERS: dict[str, Callable[[Workload, Isa], StepKernel]] = {
    "linear": _linear,
    "attention": _attention,
    "append": _append,
    "rope": _rope,
    "norm": _norm,
    "glu": _glu,
    "quantize": _quantize,
    "embedding": _embedding,
    "argmax": _argmax,
}
