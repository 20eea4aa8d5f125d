"""The table of converters, keyed by (domain, operator)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from bitwright.frontend.relax.context import Context, unsupported

Converter = Callable[[Context, ir.Node], Any]
_CONVERTERS: dict[tuple[str, str], Converter] = {}


def converter(*operators: str, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a converter for operators of one domain ("" is ai.onnx)."""

    def register(function: Converter) -> Converter:
        for operator in operators:
            _CONVERTERS[(domain, operator)] = function
        return function

    return register


def convert(context: Context, node: ir.Node) -> None:
    """Convert one node; its first output (or each, if the converter returns a tuple) becomes known to ``context``.

    Raises:
        UnsupportedError: no converter for the node's domain and operator.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    function = _CONVERTERS.get((domain, node.op_type))
    if function is None:
        raise unsupported(node, "no converter for this operator")
    result = function(context, node)
    results = result if isinstance(result, tuple) else (result,)
    for output, value in zip(node.outputs, results, strict=False):
        context.values[id(output)] = value
