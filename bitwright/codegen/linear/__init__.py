"""Packed linear layers: y[n, outputs] = x[n, inputs] . dequantized(weights)^T + bias.

What other parts call:

========================================== =========================================================================
``LinearSpec(outputs, inputs, scheme,       one kernel; ``rows=1`` is decode, ``rows=None`` prefill with symbolic n
bias=False, rows=None, residual=False)``
``MixedSpec(parts)``                        one kernel over several runs of outputs with schemes of their own
``linear_spec(scheme, outputs, inputs)``    either, from the scheme of a matrix or of its runs of rows
``why_illegal(spec, isa)``                  None, or the reason why there is no such kernel
``packed_layout(outputs, inputs, weight,    from ``codegen.layout``: ``.tensors`` (name, dtype, shape of each stored
isa.lanes)``                                tensor), ``.storage_bytes`` (padding included)
``pack``, ``pack_float``, ``dequantize``    from ``codegen.packing``: arrays to and from the stored tensors
``linear_arguments(spec, isa)``             every argument in order, the result last
``build_linear(spec, isa, name)``           the TIR PrimFunc; for one token it starts its own threads
``LinearSchedule``                          knobs; ``default_schedule(spec, isa)``, and their values in ``schedule``
``GluLinearSpec``, ``build_glu_linear``,    a gated activation and its quantization within the product of gate and up,
``joins_glu``                               for any number of tokens, and whether there is such a kernel
``linear_team_kernel(spec, isa, name)``     one token, as work for a team of threads that runs already
``tile_functions.TileFunctions``            functions that the kernels of a module share, where they have several parts
========================================== =========================================================================

Arguments (tvm tensors, C order; n is a symbolic int64 or 1; G = inputs per group, ``u..row`` means G = inputs):

- packed weights: x8 i8[n,T*K] (a8: T = 1; a16: T = 2), scale f32[n,K/G], sum i32[n,K/G] (see ``codegen.activation``),
  codes, scales[, zeros][, bias f32[N]][, residual f32[n,N]], y f32[n,N]
- float weights: x f32[n,K], weights[, bias][, residual], y
- codebook schemes: codebook u8[64] follows the scales
- several parts: the activations of each kind and group size once, in the order of the parts that first read them, then
  the weights of each part, bias, y
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.glu_spec import GluLinearSpec, joins_glu
from bitwright.codegen.linear.legality import require_legal, why_illegal
from bitwright.codegen.linear.schedule import LinearSchedule, Schedules, default_schedule
from bitwright.codegen.linear.spec import AnyLinear, LinearSpec, MixedSpec, linear_arguments, linear_spec
from bitwright.codegen.team import TeamKernel, standalone

if TYPE_CHECKING:
    from bitwright.codegen.linear.tile_functions import TileFunctions

__all__ = [
    "AnyLinear",
    "GluLinearSpec",
    "LinearSchedule",
    "LinearSpec",
    "MixedSpec",
    "build_glu_linear",
    "build_linear",
    "default_schedule",
    "joins_glu",
    "linear_arguments",
    "linear_spec",
    "linear_team_kernel",
    "require_legal",
    "why_illegal",
]


def build_linear(
    spec: AnyLinear,
    isa: Isa,
    name: str = "linear",
    threads: int = 2,
    schedules: Schedules = default_schedule,
    shared: TileFunctions | None = None,
) -> Any:
    """The PrimFunc that computes ``spec`` with ``isa``; its arguments are ``linear_arguments(spec, isa)``.

    Args:
        threads: what the work of one token is divided among; any number of tokens are divided at run time.
        schedules: chooses the knobs of each part.
        shared: takes the functions that kernels of several parts call, to be compiled along; None: code in place.

    Raises:
        UnsupportedError: there is no such kernel; the error says why.
    """
    if spec.rows == 1:
        return standalone(linear_team_kernel(spec, isa, name, schedules, shared), threads)
    require_legal(spec, isa)
    from bitwright.codegen.linear.kernel import prefill_kernel

    return prefill_kernel(spec, isa, name, schedules, shared)


def build_glu_linear(
    spec: GluLinearSpec, isa: Isa, name: str = "glu_linear", schedules: Schedules = default_schedule
) -> Any:
    """The PrimFunc of ``spec``; its arguments are those of the linear kernel, with y8, y_scale and y_sum for y.

    Raises:
        UnsupportedError: there is no linear kernel.
    """
    require_legal(spec.linear, isa)
    from bitwright.codegen.linear.glu import glu_kernel

    return glu_kernel(spec, isa, name, schedules)


def linear_team_kernel(
    spec: AnyLinear,
    isa: Isa,
    name: str = "linear",
    schedules: Schedules = default_schedule,
    shared: TileFunctions | None = None,
) -> TeamKernel:
    """The kernel of a spec for one token, whose tiles a team of threads shares; arguments as for ``build_linear``.

    Raises:
        UnsupportedError: there is no such kernel; the error says why.
    """
    require_legal(spec, isa)
    from bitwright.codegen.linear.kernel import team_kernel

    return team_kernel(spec, isa, name, schedules, shared)
