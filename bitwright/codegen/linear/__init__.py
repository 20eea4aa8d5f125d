"""Packed linear layers: y[n, outputs] = x[n, inputs] . dequantized(weights)^T + bias.

What other parts call:

========================================== =========================================================================
``LinearSpec(outputs, inputs, scheme,       one kernel; ``rows=1`` is decode, ``rows=None`` prefill with symbolic n
bias=False, rows=None)``
``why_illegal(spec, isa)``                  None, or the reason why there is no such kernel
``packed_layout(outputs, inputs, weight,    from ``codegen.layout``: ``.tensors`` (name, dtype, shape of each stored
isa.lanes)``                                tensor), ``.storage_bytes`` (padding included)
``pack``, ``pack_float``, ``dequantize``    from ``codegen.packing``: arrays to and from the stored tensors
``linear_arguments(spec, isa)``             every argument in order, the result last
``build_linear(spec, isa, name="linear")``  the TIR PrimFunc
``linear_team_kernel(spec, isa, name)``     one token (``rows=1``) as work for a running team of threads
========================================== =========================================================================

Arguments (tvm tensors, C order; n is a symbolic int64 or 1; G = inputs per group, ``u..row`` means G = inputs):

- int8 activations (a8): x8 i8[n,K], scale f32[n,K/G], sum i32[n,K/G] (see ``codegen.activation``), codes, scales
  [, zeros][, bias f32[N]], y f32[n,N]
- float activations (a16): x f32[n,K], codes, scales[, zeros][, bias], y
- float weights: x f32[n,K], weights[, bias], y
"""

from __future__ import annotations

from typing import Any

from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.legality import require_legal, why_illegal
from bitwright.codegen.linear.spec import LinearSpec, linear_arguments
from bitwright.codegen.team import TeamKernel

__all__ = ["LinearSpec", "build_linear", "linear_arguments", "linear_team_kernel", "require_legal", "why_illegal"]


def build_linear(spec: LinearSpec, isa: Isa, name: str = "linear") -> Any:
    """The PrimFunc that computes ``spec`` with ``isa``; its arguments are ``linear_arguments(spec, isa)``.

    Raises:
        UnsupportedError: there is no such kernel; the error says why.
    """
    require_legal(spec, isa)
    from bitwright.codegen.linear.kernel import linear_kernel

    return linear_kernel(spec, isa, name)


def linear_team_kernel(spec: LinearSpec, isa: Isa, name: str = "linear") -> TeamKernel:
    """The kernel of a spec for one token, whose tiles a team of threads shares.

    Raises:
        UnsupportedError: there is no such kernel; the error says why.
    """
    require_legal(spec, isa)
    from bitwright.codegen.linear import kernel

    return kernel.linear_team_kernel(spec, isa, name)
