"""A gated activation within its product: valid quantization of the oracle's result, and what separate kernels make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitwright.codegen.elementwise import Function, GluSpec, build_glu
from bitwright.codegen.isa import AVX2, AVX512VBMI, AVX512VNNI, AVXVNNI, GENERIC, Isa
from bitwright.codegen.linear import GluLinearSpec, LinearSpec, build_glu_linear, build_linear, joins_glu
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.codegen.reference import elementwise
from bitwright.codegen.reference import linear as reference
from bitwright.scheme import LinearScheme

from .linear_case import Array, Layer, missing, random_layer, tensor


def spec_of(
    scheme: str, width: int, inputs: int, quantize: str = "a8g32", function: Function = "silu"
) -> GluLinearSpec:
    return GluLinearSpec(
        LinearSpec(2 * width, inputs, LinearScheme.parse(scheme)), function, QuantizedRows.parse(quantize)
    )


def run(spec: GluLinearSpec, isa: Isa, x: Array, layer: Layer) -> tuple[list[Array], list[Array], Array]:
    """Results of the kernel, of a linear and an elementwise kernel, and the oracle's float rows."""
    from bitwright.codegen.builder import build, read_host_target

    linear, tokens = spec.linear, len(x)
    activations = reference.quantize_activation(x, linear.layout(isa).group, linear.scheme.terms)
    glu = GluSpec(spec.function, spec.width, quantize=spec.quantize, lanes=isa.lanes)
    functions = {"joined": build_glu_linear(spec, isa, "joined"), "linear": build_linear(linear, isa)}
    module = build(functions | {"glu": build_glu(glu).with_attr("global_symbol", "glu")}, read_host_target())

    def results() -> list[Any]:
        return [tensor(np.full((tokens, t.shape[1]), 99, t.dtype)) for t in spec.quantize.tensors(tokens, spec.width)]

    inputs = [tensor(array) for array in (*activations, *layer.packed.values())]
    joined, apart = results(), results()
    module["joined"](*inputs, *joined)
    product = tensor(np.full((tokens, linear.outputs), np.nan, np.float32))
    module["linear"](*inputs, product)
    module["glu"](product, *apart)
    assert layer.codes is not None and layer.scales is not None and layer.zeros is not None
    rows = reference.linear_packed(*activations[:2], layer.codes, layer.scales, layer.zeros)
    expected = elementwise.glu(spec.function, rows[:, : spec.width], rows[:, spec.width :])
    return [t.numpy() for t in joined], [t.numpy() for t in apart], expected


@pytest.mark.parametrize("tokens", [1, 7, 64])
@pytest.mark.parametrize(
    "spec",
    [
        spec_of("u4g32a8", 128, 64),
        spec_of("u3g64za8", 64, 1280, "a8g64", "gelu_tanh"),
        spec_of("c4g32a8", 64, 96, "a16g32"),
        spec_of("u8g32a16", 128, 64, "a8g32", "gelu_erf"),
    ],
    ids=lambda spec: spec.name,
)
@pytest.mark.parametrize("isa", [AVX2, AVXVNNI, AVX512VNNI, AVX512VBMI, GENERIC], ids=lambda isa: isa.name)
def test_is_what_separate_kernels_make(isa: Isa, spec: GluLinearSpec, tokens: int) -> None:
    if reason := missing(isa):
        pytest.skip(reason)
    if not joins_glu(spec.linear, spec.quantize, isa):
        pytest.skip("a tile of this machine is no whole number of groups")
    x = np.random.default_rng(tokens).standard_normal((tokens, spec.linear.inputs)).astype(np.float32)
    joined, apart, expected = run(spec, isa, x, random_layer(spec.linear, isa))
    for mine, theirs in zip(joined, apart, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    integers = reference.activation_integers(joined[0], spec.width).reshape(tokens, -1, spec.quantize.group)
    np.testing.assert_array_equal(joined[2], integers.sum(2))
    # Half a step of rounding, and what single precision loses before it.
    error = np.abs(integers * joined[1][..., None].astype(np.float64) - expected.reshape(integers.shape))
    largest = np.abs(expected).max()
    assert np.all(error <= joined[1][..., None] * 0.5 + largest * 1e-5)


@pytest.mark.parametrize(
    ("spec", "isa"),
    [
        (spec_of("u4g32a8", 96, 64), AVX512VNNI),  # gate ends within a tile
        (spec_of("u4g32a8", 128, 64, "a8g128"), AVX512VNNI),  # a group of two tiles
        (spec_of("u4g32a8", 128, 64, "a8g0"), AVX512VNNI),  # the whole row
        (spec_of("f16", 128, 64), AVX512VNNI),
    ],
    ids=["half a tile", "two tiles", "row", "float"],
)
def test_is_not_offered_where_tiles_are_no_whole_groups(spec: GluLinearSpec, isa: Isa) -> None:
    assert not joins_glu(spec.linear, spec.quantize, isa)
