"""Elementwise kernels: activations, gated activations (SwiGLU, GeGLU) and additions or products of two tensors.

Kernel arguments, float32, in order; ``n`` is symbolic unless ``rows=1``:

===================== ==================================================================================
:class:`UnarySpec`    x[n, W], y[n, W]: y = f(x)
:class:`GluSpec`      packed: x[n, 2 W] (gate columns first, then up), y[n, W]; else gate[n, W], up[n, W], y[n, W]:
                      y = f(gate) * up; with ``quantize`` the results are those of ``quantize_activation`` instead
                      of y: x8 i8[n, T * W], scale f32[n, W/G], sum8 i32[n, W/G]
:class:`BinarySpec`   a[n, W], b[n, W] (``broadcast``: b[W]), y[n, W]
===================== ==================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.checks import check_choice, check_lanes, check_positive
from bitwright.codegen.quantized_rows import QuantizedRows

Function = Literal["silu", "gelu_erf", "gelu_tanh", "relu", "tanh", "sigmoid"]
FUNCTIONS: tuple[Function, ...] = ("silu", "gelu_erf", "gelu_tanh", "relu", "tanh", "sigmoid")
OPERATORS = ("add", "sub", "mul")


@dataclass(frozen=True)
class UnarySpec:
    """y = function(x), rows of ``width``."""

    function: Function
    width: int
    rows: Literal[1] | None = None
    lanes: int = 8

    def __post_init__(self) -> None:
        check_choice("activation", self.function, FUNCTIONS)
        check_positive("width", self.width)
        check_lanes(self.lanes)

    @property
    def name(self) -> str:
        return f"{self.function}_{self.width}"


@dataclass(frozen=True)
class GluSpec:
    """y = function(gate) * up, rows of ``width``.

    Attributes:
        packed: gate and up are the halves of one input row.
        quantize: None for a float result.
    """

    function: Function
    width: int
    packed: bool = True
    rows: Literal[1] | None = None
    lanes: int = 8
    quantize: QuantizedRows | None = None

    def __post_init__(self) -> None:
        check_choice("activation", self.function, FUNCTIONS)
        check_positive("width", self.width)
        check_lanes(self.lanes)

    @property
    def name(self) -> str:
        suffix = "" if self.quantize is None else f"_{self.quantize.name}"
        return f"{self.function}_glu_{self.width}{suffix}"


@dataclass(frozen=True)
class BinarySpec:
    """y = a (operator) b; ``broadcast``: b is one row [W] for every token."""

    operator: Literal["add", "sub", "mul"]
    width: int
    broadcast: bool = False
    rows: Literal[1] | None = None
    lanes: int = 8

    def __post_init__(self) -> None:
        check_choice("operator", self.operator, OPERATORS)
        check_positive("width", self.width)
        check_lanes(self.lanes)

    @property
    def name(self) -> str:
        return f"{self.operator}_{self.width}{'_row' if self.broadcast else ''}"


def build_unary(spec: UnarySpec) -> Any:
    """PrimFunc: x, y."""
    from bitwright.codegen import vectormath
    from bitwright.codegen.builder import kernel, load, store
    from bitwright.codegen.rowloop import for_rows, token_extent

    function = getattr(vectormath, spec.function)
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        x = k.tensor("x", (n, spec.width), "float32")
        y = k.tensor("y", (n, spec.width), "float32")

        def row(i: Any) -> None:
            def piece(offset: Any, lanes: int) -> None:
                store(y, function(load(x, [i, offset], lanes), lanes), [i, offset], lanes)

            vectormath.for_spans(spec.width, 2 * spec.lanes, piece)

        for_rows(n, spec.width, row)
    return k.func


def build_glu(spec: GluSpec) -> Any:
    """PrimFunc: x, y (packed) or gate, up, y."""
    from bitwright.codegen import vectormath
    from bitwright.codegen.builder import kernel, load, store
    from bitwright.codegen.row_quantizer import RowOutput
    from bitwright.codegen.rowloop import for_rows, token_extent

    function = getattr(vectormath, spec.function)
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        if spec.packed:
            gate = up = k.tensor("x", (n, 2 * spec.width), "float32")
        else:
            gate = k.tensor("gate", (n, spec.width), "float32")
            up = k.tensor("up", (n, spec.width), "float32")
        result = RowOutput(k, n, spec.width, spec.quantize, spec.lanes)
        up_start = spec.width if spec.packed else 0

        def row(i: Any) -> None:
            y, at = stored = result.row(i)

            def piece(offset: Any, lanes: int) -> None:
                value = function(load(gate, [i, offset], lanes), lanes)
                store(y, value * load(up, [i, offset + up_start], lanes), [at, offset], lanes)

            vectormath.for_spans(spec.width, 2 * spec.lanes, piece)
            result.finish(stored, i)

        for_rows(n, spec.width, row)
    return k.func


def build_binary(spec: BinarySpec) -> Any:
    """PrimFunc: a, b, y."""
    import operator

    from bitwright.codegen.builder import kernel, load, store
    from bitwright.codegen.rowloop import for_rows, token_extent
    from bitwright.codegen.vectormath import for_spans

    apply = getattr(operator, spec.operator)
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        a = k.tensor("a", (n, spec.width), "float32")
        b = k.tensor("b", (spec.width,) if spec.broadcast else (n, spec.width), "float32")
        y = k.tensor("y", (n, spec.width), "float32")

        def row(i: Any) -> None:
            def piece(offset: Any, lanes: int) -> None:
                right = load(b, [offset] if spec.broadcast else [i, offset], lanes)
                store(y, apply(load(a, [i, offset], lanes), right), [i, offset], lanes)

            for_spans(spec.width, 4 * spec.lanes, piece)

        for_rows(n, spec.width, row)
    return k.func
