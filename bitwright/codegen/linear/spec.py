"""What a linear kernel computes, and the arguments it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout, TensorSpec, packed_layout
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.errors import InternalError
from bitwright.runs import WeightsScheme, runs_of
from bitwright.scheme import LinearScheme

TOKENS = -1
"""Stands for the symbolic number of tokens n in the shape of an argument."""

_SUFFIX = {False: "", True: "_residual"}
"""Of the name of a kernel, by whether it adds a residual."""


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer of (outputs, inputs) weights.

    Attributes:
        rows: 1 for decode (one token), None for prefill (any number n >= 1 of tokens).
        residual: a matrix like the result is added to it.
    """

    outputs: int
    inputs: int
    scheme: LinearScheme
    bias: bool = False
    rows: Literal[1] | None = None
    residual: bool = False

    def layout(self, isa: Isa) -> PackedLayout:
        return packed_layout(self.outputs, self.inputs, self.scheme.weight, isa.lanes)

    @property
    def parts(self) -> tuple[LinearSpec, ...]:
        return (self,)

    @property
    def name(self) -> str:
        """Of the kernel's function."""
        return f"linear_{self.scheme}_{self.outputs}x{self.inputs}{_SUFFIX[self.residual]}"


@dataclass(frozen=True)
class MixedSpec:
    """One kernel call over several runs of outputs, each with a scheme and packed tensors of its own.

    The runs are those of one matrix, or layers that read the same input. Their results lie one after the other.
    """

    parts: tuple[LinearSpec, ...]

    def __post_init__(self) -> None:
        if len({(part.inputs, part.bias, part.rows, part.residual) for part in self.parts}) != 1:
            raise InternalError(
                "the parts of a linear kernel do not fit together",
                where=", ".join(part.name for part in self.parts),
                limit="equal inputs, and all or none with a bias or residual",
            )

    @property
    def outputs(self) -> int:
        return sum(part.outputs for part in self.parts)

    @property
    def inputs(self) -> int:
        return self.parts[0].inputs

    @property
    def bias(self) -> bool:
        return self.parts[0].bias

    @property
    def rows(self) -> Literal[1] | None:
        return self.parts[0].rows

    @property
    def residual(self) -> bool:
        return self.parts[0].residual

    @property
    def name(self) -> str:
        schemes = "_".join(f"{part.scheme}x{part.outputs}" for part in self.parts)
        return f"linear_{schemes}_x{self.inputs}{_SUFFIX[self.residual]}"

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """The first column of each part's results."""
        return tuple(accumulate((part.outputs for part in self.parts[:-1]), initial=0))


AnyLinear = LinearSpec | MixedSpec


def linear_spec(
    scheme: WeightsScheme,
    outputs: int,
    inputs: int,
    *,
    bias: bool = False,
    rows: Literal[1] | None = None,
    residual: bool = False,
) -> AnyLinear:
    """The spec of a matrix, with a part for each run of its rows."""
    parts = tuple(LinearSpec(run.rows, inputs, run.scheme, bias, rows, residual) for run in runs_of(scheme, outputs))
    return parts[0] if len(parts) == 1 else MixedSpec(parts)


@dataclass(frozen=True)
class PartArguments:
    """Tensors of one part: what the generators call them, and the argument's name."""

    activations: dict[str, TensorSpec]
    weights: dict[str, TensorSpec]


def part_arguments(spec: AnyLinear, isa: Isa) -> tuple[PartArguments, ...]:
    """The tensors of each part. Parts that read the same activations name the same arguments."""
    known: dict[object, dict[str, TensorSpec]] = {}
    found = []
    for number, part in enumerate(spec.parts):
        layout = part.layout(isa)
        key = (part.scheme.terms, layout.groups if part.scheme.terms else 0)
        if key not in known:
            known[key] = _renamed(activation_tensors(part, layout), len(known))
        weights = {tensor.name: tensor for tensor in layout.tensors}
        found.append(PartArguments(known[key], _renamed(weights, number)))
    return tuple(found)


def activation_tensors(part: LinearSpec, layout: PackedLayout) -> dict[str, TensorSpec]:
    """What a part reads beside its weights, by what generators call it."""
    rows = part.rows or TOKENS
    terms = part.scheme.terms
    if not terms:
        return {"x": TensorSpec("x", "float32", (rows, part.inputs))}
    return {tensor.name: tensor for tensor in QuantizedRows(layout.group, terms).tensors(rows, part.inputs)}


def _renamed(tensors: dict[str, TensorSpec], number: int) -> dict[str, TensorSpec]:
    """The first of a kind keeps plain names, the others are numbered."""
    suffix = f"_{number}" if number else ""
    return {name: TensorSpec(name + suffix, tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def result_tensors(spec: AnyLinear) -> Iterator[TensorSpec]:
    """The result ``y`` last, and what is added to it before."""
    if spec.bias:
        yield TensorSpec("bias", "float32", (spec.outputs,))
    if spec.residual:
        yield TensorSpec("residual", "float32", (spec.rows or TOKENS, spec.outputs))
    yield TensorSpec("y", "float32", (spec.rows or TOKENS, spec.outputs))


def linear_arguments(spec: AnyLinear, isa: Isa) -> tuple[TensorSpec, ...]:
    """Arguments in order, the result ``y`` last. An extent ``TOKENS`` is the symbolic number of tokens."""

    def tensors() -> Iterator[TensorSpec]:
        parts = part_arguments(spec, isa)
        for part in parts:
            yield from part.activations.values()
        for part in parts:
            yield from part.weights.values()
        yield from result_tensors(spec)

    return tuple(dict.fromkeys(tensors()))
