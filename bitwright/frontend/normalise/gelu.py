"""Spellings of GELU in elementary functions become ``Gelu``, recognised by what they compute.

A sub-graph of elementwise ops with one input and scalar constants is a function of one number. It is evaluated on a
grid and compared with GELU (Hendrycks & Gimpel 2016), exact (``approximate="none"``) and in its tanh approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor, dims, scalar
from bitwright.frontend.normalise.rewrite import Key, Rewrite

GRID = np.linspace(-8.0, 8.0, 513)
TOLERANCE = 1e-5  # constants such as sqrt(2/pi) are rounded to float32 or to a few decimals by exporters
DEPTH = 16

_erf = np.vectorize(math.erf)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal, "Neg": np.negative, "Exp": np.exp, "Tanh": np.tanh, "Erf": _erf,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}  # fmt: skip
CANDIDATES = {
    "none": 0.5 * GRID * (1 + _erf(GRID / math.sqrt(2))),
    "tanh": 0.5 * GRID * (1 + np.tanh(math.sqrt(2 / math.pi) * (GRID + 0.044715 * GRID**3))),
}


def _cone(root: ir.Node) -> dict[ir.Value, ir.Node]:
    """Elementwise nodes above ``root`` (itself included), by output."""
    found: dict[ir.Value, ir.Node] = {}
    queue = [(root, 0)]
    while queue:
        node, depth = queue.pop()
        if node.op_type not in _FUNCTIONS or node.domain or depth > DEPTH:
            continue
        found[node.outputs[0]] = node
        queue.extend(
            (p, depth + 1) for v in node.inputs if v is not None and (p := v.producer()) is not None and v not in found
        )
    return found


def _evaluate(value: ir.Value, cone: dict[ir.Value, ir.Node], known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    """Content of ``value`` when the values in ``known`` are given; None where it depends on anything else."""
    if value in known:
        return known[value]
    number = scalar(value)
    if number is not None:
        return np.asarray(number)
    node = cone.get(value)
    if node is None:
        return None
    operands = [_evaluate(v, cone, known) for v in node.inputs if v is not None]
    if any(o is None for o in operands):
        return None
    with np.errstate(all="ignore"):
        known[value] = np.asarray(_FUNCTIONS[node.op_type](*operands))
    return known[value]


def _apply(node: ir.Node, editor: Editor) -> bool:
    output = node.outputs[0]
    cone = _cone(node)
    if not any(n.op_type in ("Erf", "Tanh") for n in cone.values()):
        return False
    inputs = {v for n in cone.values() for v in n.inputs if v is not None and v is not output and scalar(v) is None}
    for x in sorted(inputs, key=lambda v: str(v.name)):
        computed = _evaluate(output, cone, {x: GRID})
        if computed is None or dims(x) != dims(output):
            continue
        for approximate, expected in CANDIDATES.items():
            if float(np.max(np.abs(computed - expected))) < TOLERANCE:
                editor.replace(output, editor.op(node, "Gelu", [x], dims(x), approximate=approximate))
                return True
    return False


REWRITE = Rewrite("gelu", (Key("Mul"),), _apply)
