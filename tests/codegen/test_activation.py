"""Activation quantization is bit-exact with the oracle."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from bitwright.codegen.isa import AVX2, GENERIC, Isa
from bitwright.codegen.reference.linear import quantize_activation
from bitwright.errors import UnsupportedError

from .linear_case import GENERIC_WIDE, missing, tensor


@cache
def compiled(inputs: int, group: int, isa: Isa, rows: int | None) -> Any:
    from bitwright.codegen.activation import build_quantize_activation
    from bitwright.codegen.builder import build, read_host_target

    func = build_quantize_activation(inputs, group, isa, rows=rows)  # type: ignore[arg-type]
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
@pytest.mark.parametrize("isa", [AVX2, GENERIC, GENERIC_WIDE], ids=lambda isa: isa.name)
def test_bit_exact(isa: Isa, tokens: int, inputs: int, group: int) -> None:
    if reason := missing(isa):
        pytest.skip(reason)
    x = hard_rows(tokens, inputs)
    groups = inputs // (group or inputs)
    results = [
        tensor(np.full(shape, 99, dtype))
        for shape, dtype in (((tokens, inputs), np.int8), ((tokens, groups), np.float32), ((tokens, groups), np.int32))
    ]
    compiled(inputs, group, isa, 1 if tokens == 1 else None)(tensor(x), *results)
    for result, expected in zip(results, quantize_activation(x, group or inputs), strict=True):
        np.testing.assert_array_equal(result.numpy(), expected)


def test_oracle_on_values_worked_out_by_hand() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :4] = [-254, 127, 1, 3]  # scale 2: -127, 63.5 (tie, to even 64), 0.5 (tie, to even 0), 1.5 (to even 2)
    x8, scale, total = quantize_activation(x, 32)
    assert x8[0, :4].tolist() == [-127, 64, 0, 2]
    assert scale.tolist() == [[2, 0]]
    assert total.tolist() == [[-61, 0]]


def test_refuses_groups_that_do_not_divide() -> None:
    from bitwright.codegen.activation import build_quantize_activation

    with pytest.raises(UnsupportedError, match="cannot quantize activations of 576 inputs in groups of 128"):
        build_quantize_activation(576, 128, AVX2)
