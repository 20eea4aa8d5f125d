"""Activation quantization is bit-exact with the oracle."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import pytest

from bitwright.codegen.isa import AVX2, GENERIC, Isa
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.codegen.reference.linear import activation_integers, quantize_activation
from bitwright.errors import UnsupportedError

from .linear_case import GENERIC_WIDE, missing, tensor


@cache
def compiled(inputs: int, quantized: QuantizedRows, isa: Isa, rows: int | None) -> Any:
    from bitwright.codegen.activation import build_quantize_activation
    from bitwright.codegen.builder import build, read_host_target

    func = build_quantize_activation(inputs, quantized, isa, rows=rows)  # type: ignore[arg-type]
    return build(func, read_host_target())["quantize_activation"]


def hard_rows(tokens: int, inputs: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Magnitudes from 1e-20 to 1e20, a zero group, a nearly zero group, and exact ties of the rounding."""
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, inputs)) * 10.0 ** rng.uniform(-20, 20, (tokens, 1))
    x[:, :32] = 0
    x[0, 32:64] = 1e-36
    x[-1, 64:96] = np.arange(32) - 15.5
    x[-1, 64] = 127
    return x.astype(np.float32)


@pytest.mark.parametrize(("inputs", "group"), [(576, 32), (576, 64), (512, 128), (1536, 0)])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("isa", [AVX2, GENERIC, GENERIC_WIDE], ids=lambda isa: isa.name)
def test_bit_exact(isa: Isa, terms: Literal[1, 2], tokens: int, inputs: int, group: int) -> None:
    if reason := missing(isa):
        pytest.skip(reason)
    x = hard_rows(tokens, inputs)
    groups = inputs // (group or inputs)
    results = [
        tensor(np.full(shape, 99, dtype))
        for shape, dtype in (
            ((tokens, terms * inputs), np.int8),
            ((tokens, groups), np.float32),
            ((tokens, groups), np.int32),
        )
    ]
    compiled(inputs, QuantizedRows(group, terms), isa, 1 if tokens == 1 else None)(tensor(x), *results)
    for result, expected in zip(results, quantize_activation(x, group or inputs, terms), strict=True):
        np.testing.assert_array_equal(result.numpy(), expected)


def test_oracle_on_values_worked_out_by_hand() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :4] = [-254, 127, 1, 3]  # scale 2: -127, 63.5 (tie, to even 64), 0.5 (tie, to even 0), 1.5 (to even 2)
    x8, scale, total = quantize_activation(x, 32)
    assert x8[0, :4].tolist() == [-127, 64, 0, 2]
    assert scale.tolist() == [[2, 0]]
    assert total.tolist() == [[-61, 0]]


def test_oracle_of_two_terms_on_values_worked_out_by_hand() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = [16256, 64, 63, -64, -65]  # scale 1
    x8, scale, total = quantize_activation(x, 32, terms=2)
    assert x8[0, :5].tolist() == [127, 1, 0, 0, -1]
    assert x8[0, 32:37].tolist() == [0, -64, 63, -64, 63]
    assert scale.tolist() == [[1]] and total.tolist() == [[16254]]


def test_two_terms_err_by_at_most_2_to_the_minus_15_of_the_largest_magnitude() -> None:
    x = np.random.default_rng(3).standard_normal((7, 256)).astype(np.float32)
    x8, scale, _ = quantize_activation(x, 64, terms=2)
    restored = activation_integers(x8, 256).reshape(7, 4, 64) * scale.astype(np.float64)[..., None]
    grouped = x.reshape(7, 4, 64)
    assert np.all(np.abs(restored - grouped) <= np.abs(grouped).max(2, keepdims=True) * 2.0**-14.9)


def test_refuses_groups_that_do_not_divide() -> None:
    from bitwright.codegen.activation import build_quantize_activation

    with pytest.raises(UnsupportedError, match="cannot quantize activations of 576 inputs in groups of 128"):
        build_quantize_activation(576, QuantizedRows(128), AVX2)
