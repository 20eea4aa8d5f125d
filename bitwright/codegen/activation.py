"""Dynamic quantization of activations, per token and group: what packed linear kernels read.

Importing this module imports TVM.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, kernel, load, loop, splat, stack, store, symbol, vector
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.quantized_rows import LARGEST, LOW_BITS, SCALE_BITS, QuantizedRows
from bitwright.codegen.reference.linear import SMALLEST_ABSMAX
from bitwright.codegen.vectormath import for_spans, hold


def build_quantize_activation(
    inputs: int,
    quantized: QuantizedRows,
    isa: Isa,
    rows: Literal[1] | None = None,
    name: str = "quantize_activation",
) -> Any:
    """PrimFunc (x f32[n,K], x8 i8[n,T*K], scale f32[n,K/G], sum i32[n,K/G]); the last three are results.

    With one term (T = 1): scale = absmax / 127 (0 for a group whose absmax is below 2**-100), rounded up to three bits
    behind the leading one (``SCALE_BITS``); x8 = x * (1 / scale) rounded half to even; sum is that of the group's x8.
    With two, 127 * 128 takes the place of 127, scales are not rounded, and the integer 128 * high + low is stored as
    its terms: x8[:, :K] is high, x8[:, K:] low; sum is that of the integers.

    Args:
        inputs: K, a multiple of 32.
        rows: 1 for one token, None for a symbolic number.

    Raises:
        UnsupportedError: K or the group size does not fit.
    """
    quantized.check(inputs)
    with kernel(name) as function:
        tokens = symbol("n") if rows is None else rows
        x = function.tensor("x", (tokens, inputs), "float32")
        results = tuple(
            function.tensor(tensor.name, (tokens, tensor.shape[1]), tensor.dtype)
            for tensor in quantized.tensors(1, inputs)
        )
        with loop(tokens, "parallel" if rows is None else "serial") as row:
            quantize_row(isa.lanes, quantized, inputs, (x, row), results, row)
    return function.func


def quantize_row(
    lanes: int,
    quantized: QuantizedRows,
    width: int,
    source: tuple[Any, Any],
    results: tuple[Any, Any, Any],
    row: Any,
) -> None:
    """Emit the quantization of a row of ``width`` numbers.

    Args:
        source: (buffer, row index).
        results: x8, scale and sum, written at row ``row``.
    """
    x, source_row = source
    groups = quantized.groups(width)
    inverses = stack((groups,), "float32")
    with loop(groups) as g:
        store(inverses, _absmax(lanes, width // groups, x, [source_row, g * (width // groups)]), [g], 1)

    # A division takes as long for many groups as for one.
    def invert(g: Any, n: int) -> None:
        scale, inverse = _scaling(hold(load(inverses, [g], n)), quantized.terms, n)
        store(results[1], scale, [row, g], n)
        store(inverses, inverse, [g], n)

    for_spans(groups, lanes, invert)
    with loop(groups) as g:
        start = (x, source_row, g * (width // groups))
        _round_group(lanes, quantized.terms, width, groups, start, (results[0], results[2]), (row, g, inverses[g]))


def quantize_group(
    lanes: int,
    quantized: QuantizedRows,
    width: int,
    source: Any,
    results: tuple[Any, Any, Any],
    at: tuple[Any, Any, Any],
) -> None:
    """Emit the quantization of one group of several rows of ``width`` numbers.

    Args:
        source: f32 [most rows, at least a group], a multiple of ``lanes`` rows; the group stands first.
        results: x8, scale and sum.
        at: the first row of the results, the number of rows, and the group.
    """
    groups, most = quantized.groups(width), int(source.shape[0])
    first_row, rows, g = at
    scales, inverses = stack((most,), "float32"), stack((most,), "float32")
    with loop(rows) as row:
        store(scales, _absmax(lanes, width // groups, source, [row, T.int64(0)]), [row], 1)
    # Divisions take as long for many rows as for one; what lies behind the last row is not read.
    for first in range(0, most, lanes):
        scale, inverse = _scaling(hold(load(scales, [first], lanes)), quantized.terms, lanes)
        store(inverses, inverse, [first], lanes)
        store(scales, scale, [first], lanes)
    with loop(rows) as row:
        T.buffer_store(results[1], scales[row], [first_row + row, g])
        start, to = (source, row, T.int64(0)), (first_row + row, g, inverses[row])
        _round_group(lanes, quantized.terms, width, groups, start, (results[0], results[2]), to)


def _scaling(absmax: Any, terms: int, lanes: int) -> tuple[Any, Any]:
    """A group's scale, and what its numbers are multiplied by; both 0 where there is next to nothing to scale."""
    live = absmax >= splat(T.float32(float(SMALLEST_ABSMAX)), lanes)
    scale = hold(_rounded_up(absmax / splat(T.float32(LARGEST[terms]), lanes), SCALE_BITS[terms], lanes))
    zero, one = (splat(T.float32(value), lanes) for value in (0, 1))
    return T.Select(live, scale, zero), T.Select(live, one / scale, zero)


def _rounded_up(value: Any, bits: int, lanes: int) -> Any:
    """The least float32 lanes not below ``value`` (>= 0) with at most ``bits`` bits behind the leading one."""
    below = (1 << (23 - bits)) - 1
    if not below:
        return value
    raised = T.reinterpret(value, dtype=vector("int32", lanes)) + splat(T.int32(below), lanes)
    return T.reinterpret(raised & splat(T.int32(~below), lanes), dtype=vector("float32", lanes))


def _absmax(lanes: int, group: int, x: Any, start: list[Any]) -> Any:
    """The largest magnitude of ``group`` numbers from ``start`` on: a scalar."""
    vectors, single = INPUT_MULTIPLE // lanes, vector("float32", lanes)
    largest = Registers(vectors, single)
    for index in range(vectors):
        largest[index] = splat(T.float32(0), lanes)
    row, first = start
    with loop(group // INPUT_MULTIPLE) as chunk:
        for index in range(vectors):
            at = [row, first + chunk * INPUT_MULTIPLE + index * lanes]
            largest[index] = T.max(largest[index], T.fabs(load(x, at, lanes)))
    return _across(T.max, [largest[index] for index in range(vectors)], lanes, "float32")


def _round_group(
    lanes: int,
    terms: int,
    width: int,
    groups: int,
    source: tuple[Any, Any, Any],
    results: tuple[Any, Any],
    at: tuple[Any, Any, Any],
) -> None:
    """Store the integers of a group and their sum.

    Args:
        source: (buffer, row index, first column).
        at: result row, group, and what the numbers are multiplied by.
    """
    x, source_row, first = source
    row, g, inverse = at
    group, vectors, word = width // groups, INPUT_MULTIPLE // lanes, vector("int32", lanes)
    factor = hold(inverse)
    sums = Registers(vectors, word)
    for index in range(vectors):
        sums[index] = splat(T.int32(0), lanes)
    with loop(group // INPUT_MULTIPLE) as chunk:
        for index in range(vectors):
            offset = chunk * INPUT_MULTIPLE + index * lanes
            scaled = load(x, [source_row, first + offset], lanes) * splat(factor, lanes)
            rounded = hold(T.cast(T.nearbyint(scaled), word))
            sums[index] = sums[index] + rounded
            for term, value in enumerate(_terms(rounded, terms, lanes)):
                column = g * group + offset + term * width
                store(results[0], T.cast(value, vector("int8", lanes)), [row, column], lanes)
    total = _across(lambda a, b: a + b, [sums[index] for index in range(vectors)], lanes, "int32")
    store(results[1], total, [row, g], 1)


def _terms(value: Any, terms: int, lanes: int) -> list[Any]:
    """The int32 vectors that are stored for integers, the highest first."""
    if terms == 1:
        return [value]
    shift = splat(T.int32(LOW_BITS), lanes)
    high = (value + splat(T.int32(1 << (LOW_BITS - 1)), lanes)) >> shift
    return [high, value - (high << shift)]


def _across(combine: Any, vectors: list[Any], lanes: int, dtype: str) -> Any:
    """Reduces vectors to one scalar: to one vector first, which is folded in halves."""
    value = reduce(combine, vectors)
    while lanes > 2:
        lanes //= 2
        whole, half = hold(value), vector(dtype, lanes)
        value = combine(T.vectorlow(half, whole), T.vectorhigh(half, whole))
    pair = stack((2,), dtype)
    store(pair, value, [0], 2)
    return combine(pair[0], pair[1])
