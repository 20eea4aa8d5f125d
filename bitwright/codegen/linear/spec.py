"""What a linear kernel computes, and the arguments it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout, TensorSpec, packed_layout
from bitwright.scheme import LinearScheme

TOKENS = -1
"""Stands for the symbolic number of tokens n in the shape of an argument."""


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer of (outputs, inputs) weights.

    Attributes:
        rows: 1 for decode (one token), None for prefill (any number n >= 1 of tokens).
    """

    outputs: int
    inputs: int
    scheme: LinearScheme
    bias: bool = False
    rows: Literal[1] | None = None

    def layout(self, isa: Isa) -> PackedLayout:
        return packed_layout(self.outputs, self.inputs, self.scheme.weight, isa.lanes)


def linear_arguments(spec: LinearSpec, isa: Isa) -> tuple[TensorSpec, ...]:
    """Arguments in order, the result ``y`` last. An extent ``TOKENS`` is the symbolic number of tokens."""
    rows = spec.rows or TOKENS
    layout = spec.layout(isa)
    if spec.scheme.activation.bits == 8:
        grouped = (rows, layout.groups)
        activations: tuple[TensorSpec, ...] = (
            TensorSpec("x8", "int8", (rows, spec.inputs)),
            TensorSpec("scale", "float32", grouped),
            TensorSpec("sum", "int32", grouped),
        )
    else:
        activations = (TensorSpec("x", "float32", (rows, spec.inputs)),)
    bias = (TensorSpec("bias", "float32", (spec.outputs,)),) if spec.bias else ()
    return (*activations, *layout.tensors, *bias, TensorSpec("y", "float32", (rows, spec.outputs)))
