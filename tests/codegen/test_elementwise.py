"""Activations, gated activations and binary kernels."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen import elementwise as kernels
from bitwright.codegen.quantized_rows import SCALE_BITS, QuantizedRows
from bitwright.codegen.reference import elementwise as reference
from bitwright.codegen.reference.linear import rounded_up
from bitwright.errors import UnsupportedError

from .harness import assert_close, call, empty
from .tolerances import ELEMENTWISE, EXACT

RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


@pytest.mark.parametrize("function", kernels.FUNCTIONS)
def test_function_over_its_whole_range(function: kernels.Function) -> None:
    x = np.concatenate([np.linspace(-110, 110, 20000), np.linspace(-4, 4, 20000), [0.0, -0.0, 3e38, -3e38, 1e-40]])
    x = x.astype("float32")[None, :]
    spec = kernels.UnarySpec(function, x.shape[1])
    (y,) = call(kernels.build_unary, spec, x, empty(*x.shape), outputs=(1,))
    with np.errstate(over="ignore"):
        assert_close(y, reference.apply(function, x), ELEMENTWISE)


@pytest.mark.parametrize("function", kernels.FUNCTIONS)
def test_nan_stays_nan(function: kernels.Function) -> None:
    x = np.zeros((1, 40005), "float32")
    x[0, [0, 17, 40004]] = np.nan
    (y,) = call(kernels.build_unary, kernels.UnarySpec(function, 40005), x, empty(*x.shape), outputs=(1,))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


def test_oracle_is_torch() -> None:
    torch = pytest.importorskip("torch")
    x = normal(2, 50) * 4
    f, tensor = torch.nn.functional, torch.from_numpy(x)
    for name, expected in [
        ("silu", f.silu(tensor)),
        ("gelu_erf", f.gelu(tensor)),
        ("gelu_tanh", f.gelu(tensor, approximate="tanh")),
    ]:
        assert_close(reference.apply(name, x), expected.numpy(), ELEMENTWISE)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("function", ["silu", "gelu_erf", "gelu_tanh"])
def test_glu(function: kernels.Function, packed: bool, lanes: int) -> None:
    spec = kernels.GluSpec(function, 53, packed=packed, lanes=lanes)
    for n in (1, 3):
        gate, up = normal(n, 53) * 3, normal(n, 53)
        inputs = [np.concatenate([gate, up], axis=1)] if packed else [gate, up]
        (y,) = call(kernels.build_glu, spec, *inputs, empty(n, 53), outputs=(len(inputs),))
        assert_close(y, reference.glu(function, gate, up), ELEMENTWISE)


@pytest.mark.parametrize("rows", [1, None])
@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("operator", kernels.OPERATORS)
def test_binary(operator: str, broadcast: bool, rows: int | None) -> None:
    spec = kernels.BinarySpec(operator, 77, broadcast=broadcast, rows=rows)  # type: ignore[arg-type]
    for n in (1,) if rows else (1, 4, 500):  # 500 rows go parallel
        a, b = normal(n, 77), normal(77) if broadcast else normal(n, 77)
        (y,) = call(kernels.build_binary, spec, a, b, empty(n, 77), outputs=(2,))
        expected = {"add": a + b, "sub": a - b, "mul": a * b}[operator]
        assert_close(y, expected, EXACT)


def test_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="no kernel for activation 'mish'") as caught:
        kernels.UnarySpec("mish", 8)  # type: ignore[arg-type]
    assert "gelu_erf" in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_a_gated_activation_can_quantize_its_result(packed: bool) -> None:
    plain, quantized = (kernels.GluSpec("silu", 96, packed, quantize=q) for q in (None, QuantizedRows(32)))
    gate, up = (np.random.default_rng(s).standard_normal((3, 96)).astype("float32") for s in (1, 2))
    inputs = [np.concatenate([gate, up], 1)] if packed else [gate, up]
    (expected,) = call(kernels.build_glu, plain, *inputs, empty(3, 96), outputs=(len(inputs),))
    results = [np.zeros((3, 96), np.int8), empty(3, 3), np.zeros((3, 3), np.int32)]
    first = len(inputs)
    x8, scale, sums = call(kernels.build_glu, quantized, *inputs, *results, outputs=(first, first + 1, first + 2))
    largest = np.abs(expected.reshape(3, 3, 32)).max(2)
    np.testing.assert_array_equal(scale, rounded_up(largest / np.float32(127), SCALE_BITS[1]))
    assert np.abs(x8.reshape(3, 3, 32) - expected.reshape(3, 3, 32) / scale[:, :, None]).max() < 0.5 + 1e-3
    np.testing.assert_array_equal(sums, x8.reshape(3, 3, 32).astype(np.int32).sum(2))
