"""Rotate rows by an orthonormal matrix (``bitwright.hadamard``), and quantize them where that is wanted.

Kernel arguments, in order (``n`` is symbolic unless ``rows=1``)::

    x f32[n, W], y f32[n, W] (output):  y = x R, or x R^T

With ``quantize`` the results are those of ``quantize_activation`` instead of y: x8 i8[n, T * W], scale f32[n, W/G],
sum8 i32[n, W/G].

R is I x H_M x H_P: vectors that stand P elements apart are summed with the signs of H_M first, then the power of two is
done in butterflies (the fast Walsh-Hadamard transform): between the lanes of a vector by shuffles, between up to RADIX
vectors at a time in registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.codegen.checks import check_lanes
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.hadamard import Rotation, signs

RADIX = 8
"""Vectors that are transformed at a time: with their temporaries they fit 16 registers."""


@dataclass(frozen=True)
class RotateSpec:
    """One kernel.

    Attributes:
        rotation: R.
        transposed: multiply by R^T.
        rows: 1 for decode, None for a symbolic number of tokens.
        quantize: None for a float result.
    """

    rotation: Rotation
    transposed: bool = False
    rows: Literal[1] | None = None
    lanes: int = 8
    quantize: QuantizedRows | None = None

    def __post_init__(self) -> None:
        check_lanes(self.lanes)

    @property
    def name(self) -> str:
        r, back = self.rotation, "_back" if self.transposed else ""
        suffix = "" if self.quantize is None else f"_{self.quantize.name}"
        return f"rotate_{r.blocks}x{r.order}x{r.power}{back}{suffix}"


def build_rotate(spec: RotateSpec) -> Any:
    """The PrimFunc of ``spec`` (arguments: module docstring)."""
    from bitwright.codegen.builder import kernel
    from bitwright.codegen.row_quantizer import RowOutput
    from bitwright.codegen.rowloop import for_rows, token_extent

    width = spec.rotation.width
    with kernel(spec.name) as k:
        n = token_extent(spec.rows)
        x = k.tensor("x", (n, width), "float32")
        result = RowOutput(k, n, width, spec.quantize, spec.lanes)

        def row(i: Any) -> None:
            source, stored = (x, i), result.row(i)
            scale = spec.rotation.mixed**-0.5
            passes = list(_passes(spec))
            if spec.rotation.order > 1 or not passes:
                _dense(spec, source, stored, 1.0 if passes else scale)
                source = stored
            for index, (stride, count) in enumerate(passes):
                last = index == len(passes) - 1
                _butterflies(spec, source, stored, stride, count, scale if last else 1.0)
                source = stored
            result.finish(stored, i)

        for_rows(n, width, row)
    return k.func


def _lanes(spec: RotateSpec) -> int:
    return min(spec.lanes, spec.rotation.power)


def _passes(spec: RotateSpec) -> Iterator[tuple[int, int]]:
    """(distance in vectors, number of vectors) of each pass over a row; the first one also mixes lanes."""
    if spec.rotation.power == 1:
        return
    vectors, stride = spec.rotation.power // _lanes(spec), 1
    while True:
        count = min(RADIX, vectors // stride)
        yield stride, count
        stride *= count
        if stride == vectors:
            return


def _dense(spec: RotateSpec, source: tuple[Any, Any], target: tuple[Any, Any], scale: float) -> None:
    """Multiply by H_M across vectors that stand P elements apart."""
    from bitwright.codegen.builder import load, loop, store
    from bitwright.codegen.vectormath import hold, splat

    r, lanes = spec.rotation, _lanes(spec)
    matrix = signs(r.order)
    assert matrix is not None  # a rotation has one
    with loop(r.blocks) as block, loop(r.power // lanes) as column:
        start = block * (r.order * r.power) + column * lanes
        values = [hold(load(source[0], [source[1], start + a * r.power], lanes)) for a in range(r.order)]
        for to in range(r.order):
            weights = [matrix[to][a] if spec.transposed else matrix[a][to] for a in range(r.order)]
            total = _signed_sum(values, weights)
            total = total if scale == 1.0 else total * splat(scale, lanes)
            store(target[0], total, [target[1], start + to * r.power], lanes)


def _signed_sum(values: list[Any], weights: list[int]) -> Any:
    """Sum of +-values, added in a tree so that additions do not wait for each other."""
    from bitwright.codegen.vectormath import hold

    terms = [(value, weight) for value, weight in zip(values, weights, strict=True)]
    while len(terms) > 1:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        joined = [(hold(a + b if p == q else a - b), p) for (a, p), (b, q) in pairs]
        terms = joined + (terms[-1:] if len(terms) % 2 else [])
    value, weight = terms[0]
    return value if weight > 0 else -value


def _butterflies(
    spec: RotateSpec, source: tuple[Any, Any], target: tuple[Any, Any], stride: int, count: int, scale: float
) -> None:
    """Mix groups of ``count`` vectors that stand ``stride`` vectors apart; neighbours' lanes too if ``stride`` is 1."""
    from bitwright.codegen.builder import load, loop, store
    from bitwright.codegen.vectormath import hold, splat

    lanes = _lanes(spec)
    span = count * stride * lanes
    with loop(spec.rotation.width // span) as outer, loop(stride) as inner:
        offsets = [outer * span + inner * lanes + j * stride * lanes for j in range(count)]
        values = [hold(load(source[0], [source[1], offset], lanes)) for offset in offsets]
        if stride == 1:
            values = [_across_lanes(value, lanes) for value in values]
        half = 1
        while half < count:
            for a in range(count):
                if not a & half:
                    low, high = values[a], values[a + half]
                    values[a], values[a + half] = hold(low + high), hold(low - high)
            half *= 2
        for offset, value in zip(offsets, values, strict=True):
            store(target[0], value if scale == 1.0 else value * splat(scale, lanes), [target[1], offset], lanes)


def _across_lanes(value: Any, lanes: int) -> Any:
    """The transform of the elements of one vector."""
    from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

    from bitwright.codegen.vectormath import hold

    half = 1
    while half < lanes:
        swapped = T.Shuffle([value], [j ^ half for j in range(lanes)])
        both = [hold(swapped + value), hold(swapped - value)]
        value = hold(T.Shuffle(both, [j + lanes * bool(j & half) for j in range(lanes)]))
        half *= 2
    return value
