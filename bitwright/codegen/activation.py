"""Dynamic int8 quantization of activations, per token and group: what int8 linear kernels read.

Importing this module imports TVM.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import Registers, kernel, load, loop, splat, stack, store, symbol, vector
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.reference.linear import SMALLEST_ABSMAX
from bitwright.errors import UnsupportedError


def build_quantize_activation(
    inputs: int, group: int, isa: Isa, rows: Literal[1] | None = None, name: str = "quantize_activation"
) -> Any:
    """PrimFunc (x f32[n,K], x8 i8[n,K], scale f32[n,K/G], sum i32[n,K/G]); the last three are results.

    scale = absmax / 127 (0 for a group whose absmax is below 2**-100), x8 = x * (127 / absmax) rounded half to even,
    sum is that of the group's x8.

    Args:
        inputs: K, a multiple of 32.
        group: G, a multiple of 32 that divides K; 0 means the whole row.
        rows: 1 for one token, None for a symbolic number.

    Raises:
        UnsupportedError: K or G does not fit.
    """
    check_groups(inputs, group)
    group = group or inputs
    groups = inputs // group
    with kernel(name) as function:
        tokens = symbol("n") if rows is None else rows
        x = function.tensor("x", (tokens, inputs), "float32")
        x8 = function.tensor("x8", (tokens, inputs), "int8")
        scale = function.tensor("scale", (tokens, groups), "float32")
        total = function.tensor("sum", (tokens, groups), "int32")
        with loop(tokens, "parallel" if rows is None else "serial") as row, loop(groups) as g:
            quantize_group(isa.lanes, group, (x, row), x8, scale, total, row, g)
    return function.func


def check_groups(inputs: int, group: int) -> None:
    """Raises UnsupportedError if rows of ``inputs`` cannot be quantized in groups of ``group`` (0: the whole row)."""
    group = group or inputs
    if inputs % INPUT_MULTIPLE or group % INPUT_MULTIPLE or inputs % group:
        raise UnsupportedError(
            f"cannot quantize activations of {inputs} inputs in groups of {group}",
            limit=f"groups are multiples of {INPUT_MULTIPLE} that divide the inputs",
            remedy="use a smaller group, or a16 for this layer",
        )


def quantize_group(
    lanes: int, group: int, source: tuple[Any, Any], x8: Any, scale: Any, total: Any, row: Any, g: Any
) -> None:
    """Emit the quantization of group ``g`` of a row: ``source`` is (buffer, row index), results go to row ``row``."""
    x, source_row = source
    vectors = INPUT_MULTIPLE // lanes
    chunks = group // INPUT_MULTIPLE
    single, word, byte = vector("float32", lanes), vector("int32", lanes), vector("int8", lanes)

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
    inverse[0] = T.Select(live, T.float32(127) / absmax[0], T.float32(0))
    store(scale, T.Select(live, absmax[0] / T.float32(127), T.float32(0)), [row, g], 1)

    with loop(chunks) as chunk:
        for index in range(vectors):
            scaled = load(x, [source_row, column(chunk, index)], lanes) * splat(inverse[0], lanes)
            rounded = Registers(1, word)
            rounded[0] = T.cast(T.nearbyint(scaled), word)
            sums[index] = sums[index] + rounded[0]
            store(x8, T.cast(rounded[0], byte), [row, column(chunk, index)], lanes)
    store(total, _across(lambda a, b: a + b, [sums[index] for index in range(vectors)], lanes, "int32"), [row, g], 1)


def _across(combine: Any, vectors: list[Any], lanes: int, dtype: str) -> Any:
    """Reduces vectors to one scalar, pairwise."""
    staged = stack((lanes,), dtype)
    store(staged, reduce(combine, vectors), [0], lanes)
    values = [staged[lane] for lane in range(lanes)]
    while len(values) > 1:
        values = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]
