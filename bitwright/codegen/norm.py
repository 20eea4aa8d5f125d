"""RMSNorm and LayerNorm over the last axis, optionally fused with the residual addition before them.

Kernel arguments, float32, in order (parts in brackets as the spec says)::

    x[n, W] [, residual[n, W]], gain[W] [, bias[W]] [, sum[n, W] (output)], y[n, W] (output)

With ``quantize`` the results are those of ``quantize_activation`` instead of y: x8 i8[n, T * W], scale f32[n, W/G],
sum8 i32[n, W/G]. With ``residual`` the kernel writes sum = x + residual and normalises the sum. ``n`` is symbolic
unless ``rows=1``.

RMSNorm (Zhang and Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * gain [+ bias].
LayerNorm (Ba et al. 2016): y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * gain [+ bias], the
variance in a second pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.checks import check_choice, check_lanes, check_positive
from bitwright.codegen.quantized_rows import QuantizedRows


@dataclass(frozen=True)
class NormSpec:
    """One normalisation kernel.

    Attributes:
        kind: ``rms`` or ``layer``.
        width: W, elements of a row.
        eps: added to the mean square or variance.
        bias: whether a bias[W] is added.
        residual: whether x and residual are added first, and their sum is an output.
        rows: 1 for a decode kernel, None for a symbolic number of tokens.
        lanes: float32 lanes of the target's vectors.
        quantize: None for a float result.
    """

    kind: Literal["rms", "layer"]
    width: int
    eps: float
    bias: bool = False
    residual: bool = False
    rows: Literal[1] | None = None
    lanes: int = 8
    quantize: QuantizedRows | None = None

    def __post_init__(self) -> None:
        check_choice("norm kind", self.kind, ("rms", "layer"))
        check_positive("norm width", self.width)
        check_lanes(self.lanes)

    @property
    def name(self) -> str:
        prefix, bias = "add_" if self.residual else "", "_bias" if self.bias else ""
        return f"{prefix}{self.kind}_norm_{self.width}{bias}{_suffix(self.quantize)}"


def _suffix(quantize: QuantizedRows | None) -> str:
    return "" if quantize is None else f"_{quantize.name}"


def build_norm(spec: NormSpec) -> Any:
    """The PrimFunc of ``spec`` (arguments: module docstring)."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import kernel, load, store
    from bitwright.codegen.row_quantizer import RowOutput
    from bitwright.codegen.rowloop import for_rows, token_extent
    from bitwright.codegen.vectormath import for_spans, hold, splat

    width = spec.width
    wide = 4 * spec.lanes  # four vectors at a time hide the latency of the additions
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        x = k.tensor("x", (n, width), "float32")
        residual = k.tensor("residual", (n, width), "float32") if spec.residual else None
        gain = k.tensor("gain", (width,), "float32")
        bias = k.tensor("bias", (width,), "float32") if spec.bias else None
        total = k.tensor("sum", (n, width), "float32") if spec.residual else x
        result = RowOutput(k, n, width, spec.quantize, spec.lanes)

        def row(i: Any) -> None:
            def add_residual(offset: Any, lanes: int) -> None:
                at = [i, offset]
                store(total, load(x, at, lanes) + load(residual, at, lanes), at, lanes)

            if spec.residual:
                for_spans(width, wide, add_residual)
            mean: Any = T.float32(0)
            if spec.kind == "layer":
                mean = hold(_row_sum(width, wide, lambda o, lanes: load(total, [i, o], lanes)) * T.float32(1 / width))

            def centred(offset: Any, lanes: int) -> Any:
                value = load(total, [i, offset], lanes)
                return value - splat(mean, lanes) if spec.kind == "layer" else value

            def square(offset: Any, lanes: int) -> Any:
                value = hold(centred(offset, lanes))
                return value * value

            mean_square = _row_sum(width, wide, square) * T.float32(1 / width)
            factor = hold(T.float32(1) / T.sqrt(mean_square + T.float32(spec.eps)))

            y, at = stored = result.row(i)

            def write(offset: Any, lanes: int) -> None:
                value = centred(offset, lanes) * splat(factor, lanes) * load(gain, [offset], lanes)
                store(y, value if bias is None else value + load(bias, [offset], lanes), [at, offset], lanes)

            for_spans(width, wide, write)
            result.finish(stored, i)

        for_rows(n, width, row)
    return k.func


def _row_sum(width: int, lanes: int, term: Callable[[Any, int], Any]) -> Any:
    """Sum of ``term(offset, lanes)`` over a row: a scalar expression."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.builder import Registers, vector
    from bitwright.codegen.vectormath import add, for_spans, hold, reduce_lanes, splat

    full = Registers(1, vector("float32", lanes))
    rest = Registers(1, "float32")
    full[0] = splat(0.0, lanes)
    rest[0] = T.float32(0)

    def accumulate(offset: Any, piece: int) -> None:
        if piece == lanes:
            full[0] = full[0] + term(offset, piece)
        else:
            rest[0] = rest[0] + reduce_lanes(term(offset, piece), piece, add)

    for_spans(width, lanes, accumulate)
    return hold(reduce_lanes(full[0], lanes, add) + rest[0])
