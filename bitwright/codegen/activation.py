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
from bitwright.codegen.quantized_rows import LARGEST, LOW_BITS, QuantizedRows
from bitwright.codegen.reference.linear import SMALLEST_ABSMAX


def build_quantize_activation(
    inputs: int,
    quantized: QuantizedRows,
    isa: Isa,
    rows: Literal[1] | None = None,
    name: str = "quantize_activation",
) -> Any:
    """PrimFunc (x f32[n,K], x8 i8[n,T*K], scale f32[n,K/G], sum i32[n,K/G]); the last three are results.

    With one term (T = 1): scale = absmax / 127 (0 for a group whose absmax is below 2**-100), x8 = x * (127 / absmax)
    rounded half to even, sum is that of the group's x8. With two, 127 * 128 takes the place of 127, and the integer
    128 * high + low is stored as its terms: x8[:, :K] is high, x8[:, K:] low; sum is that of the integers.

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
        with (
            loop(tokens, "parallel" if rows is None else "serial") as row,
            loop(quantized.groups(inputs)) as g,
        ):
            quantize_group(isa.lanes, quantized, inputs, (x, row), results, row, g)
    return function.func


def quantize_group(
    lanes: int,
    quantized: QuantizedRows,
    width: int,
    source: tuple[Any, Any],
    results: tuple[Any, Any, Any],
    row: Any,
    g: Any,
) -> None:
    """Emit the quantization of group ``g`` of a row of ``width`` numbers.

    Args:
        source: (buffer, row index).
        results: x8, scale and sum, written at row ``row``.
    """
    x, source_row = source
    x8, scale, total = results
    group = quantized.group or width
    vectors = INPUT_MULTIPLE // lanes
    chunks = group // INPUT_MULTIPLE
    single, word, byte = vector("float32", lanes), vector("int32", lanes), vector("int8", lanes)
    top = T.float32(LARGEST[quantized.terms])

    def column(chunk: Any, index: int) -> Any:
        return g * group + chunk * INPUT_MULTIPLE + index * lanes

    largest = Registers(vectors, single)
    sums = Registers(vectors, word)
    for index in range(vectors):
        largest[index] = splat(T.float32(0), lanes)
        sums[index] = splat(T.int32(0), lanes)
    with loop(chunks) as chunk:
        for index in range(vectors):
            largest[index] = T.max(largest[index], T.fabs(load(x, [source_row, column(chunk, index)], lanes)))

    absmax = Registers(1, "float32")
    absmax[0] = _across(T.max, [largest[index] for index in range(vectors)], lanes, "float32")
    live = absmax[0] >= T.float32(float(SMALLEST_ABSMAX))
    inverse = Registers(1, "float32")
    inverse[0] = T.Select(live, top / absmax[0], T.float32(0))
    store(scale, T.Select(live, absmax[0] / top, T.float32(0)), [row, g], 1)

    with loop(chunks) as chunk:
        for index in range(vectors):
            scaled = load(x, [source_row, column(chunk, index)], lanes) * splat(inverse[0], lanes)
            rounded = Registers(1, word)
            rounded[0] = T.cast(T.nearbyint(scaled), word)
            sums[index] = sums[index] + rounded[0]
            for term, value in enumerate(_terms(rounded[0], quantized.terms, lanes)):
                store(x8, T.cast(value, byte), [row, column(chunk, index) + term * width], lanes)
    store(total, _across(lambda a, b: a + b, [sums[index] for index in range(vectors)], lanes, "int32"), [row, g], 1)


def _terms(value: Any, terms: int, lanes: int) -> list[Any]:
    """The int32 vectors that are stored for integers, the highest first."""
    if terms == 1:
        return [value]
    shift = splat(T.int32(LOW_BITS), lanes)
    high = (value + splat(T.int32(1 << (LOW_BITS - 1)), lanes)) >> shift
    return [high, value - (high << shift)]


def _across(combine: Any, vectors: list[Any], lanes: int, dtype: str) -> Any:
    """Reduces vectors to one scalar, pairwise."""
    staged = stack((lanes,), dtype)
    store(staged, reduce(combine, vectors), [0], lanes)
    values = [staged[lane] for lane in range(lanes)]
    while len(values) > 1:
        values = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]
