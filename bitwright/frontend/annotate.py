"""Give every value of a lifted graph its dimensions in terms of n and p."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.frontend.probe import Probe
from bitwright.frontend.roles import Role, Roles

# (new tokens, cached tokens): primes and sums that no model size is likely to equal by accident in both.
FIRST, SECOND = (7, 11), (5, 18)


def annotate(model: ir.Model, roles: Roles) -> None:
    """Write shapes with dimensions ``int``, ``"n"``, ``"p"`` and ``"n+p"`` on all values; ``"?"`` marks any other
    variation.
    """
    cached = bool(roles.past)
    points = (FIRST, SECOND) if cached else ((FIRST[0], 0), (SECOND[0], 0))
    values = [v for node in model.graph for v in node.outputs]
    probes = [Probe(model, roles, *at) for at in points]
    first, second = (probe.shapes(values) for probe in probes)
    for value, a, b in zip(values, first, second, strict=True):
        if a is None or b is None or len(a) != len(b):
            value.shape = None
            continue
        value.shape = ir.Shape([_dimension(x, y, *points) for x, y in zip(a, b, strict=True)])
        if value.dtype is None:
            value.dtype = probes[0].dtype(value)
    for value, role in roles.items():
        if role is Role.PAST:
            shape = roles.concrete_shape(value, *FIRST)
            value.shape = ir.Shape([1, shape[1], "p", shape[3]])
        else:
            value.shape = ir.Shape([1, "n+p" if role is Role.MASK and cached else "n"])


def _dimension(a: int, b: int, first: tuple[int, int], second: tuple[int, int]) -> int | str:
    if a == b:
        return a
    if (a, b) == (first[0], second[0]):
        return "n"
    if (a, b) == (first[1], second[1]):
        return "p"
    return "n+p" if (a, b) == (sum(first), sum(second)) else "?"
