"""Looking at IR in tests."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bitwright import relax_ops
from bitwright.passes.base import bindings, functions, operator_name
from bitwright.program import Program


def calls(program: Program, entry: str = "decode") -> list[Any]:
    """The operator calls of one entry point, in order."""
    return [b.value for b in bindings(dict(functions(program.module))[entry]) if operator_name(b.value)]


def operators(program: Program, entry: str = "decode") -> Counter[str]:
    """How often each operator is called; ours without prefix."""
    return Counter(relax_ops.name_of(call) or operator_name(call) for call in calls(program, entry))


def named(program: Program, name: str, entry: str = "decode") -> list[Any]:
    """Calls of one of bitwright's operators."""
    return [call for call in calls(program, entry) if relax_ops.name_of(call) == name]
