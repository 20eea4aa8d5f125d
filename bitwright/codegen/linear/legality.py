"""Which linear kernels exist."""

from __future__ import annotations

from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.spec import AnyLinear, LinearSpec
from bitwright.errors import UnsupportedError

MAX_ROW_GROUP = 65536
"""Inputs that an int32 accumulates without overflow: 65536 * 127 * 255 < 2**31 (and 65536 * 127 * 128 < 2**31)."""


def why_illegal(spec: AnyLinear, isa: Isa) -> str | None:
    """None if the kernel exists, else the reason in one sentence."""
    return next((reason for part in spec.parts if (reason := _why_illegal(part))), None)


def _why_illegal(spec: LinearSpec) -> str | None:
    weight, inputs = spec.scheme.weight, spec.inputs
    if spec.outputs < 1 or inputs < 1:
        return f"a matrix of {spec.outputs} x {inputs} weights is empty"
    if spec.rows not in (1, None):
        return f"kernels take one token or any number of tokens, not exactly {spec.rows}"
    if weight.is_float:
        return None
    if inputs % INPUT_MULTIPLE:
        return f"{inputs} inputs are not a multiple of {INPUT_MULTIPLE}, which packed kernels work on"
    if weight.group and inputs % weight.group:
        return f"groups of {weight.group} do not divide {inputs} inputs"
    if not weight.group and inputs > MAX_ROW_GROUP:
        return f"{inputs} inputs in one group overflow an int32 sum (at most {MAX_ROW_GROUP})"
    return None


def require_legal(spec: AnyLinear, isa: Isa) -> None:
    """Raises UnsupportedError if the kernel does not exist."""
    refused = next(((part, reason) for part in spec.parts if (reason := _why_illegal(part))), None)
    if refused is None:
        return
    spec, reason = refused
    raise UnsupportedError(
        f"no {spec.scheme} kernel for {spec.outputs} x {spec.inputs} weights on {isa.name}",
        limit=reason,
        remedy="use a smaller group, or f16 for this layer",
    )
