"""The oracle itself, against arithmetic that shares no code with it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from bitwright.codegen.reference import linear as reference


def test_a8_equals_dequantized_floats() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    codes = rng.integers(0, 16, (5, 64)).astype(np.uint8)
    scales, zeros = rng.standard_normal((5, 2)).astype(np.float16), rng.integers(0, 16, (5, 2))
    x8, scale, total = reference.quantize_activation(x, 32)
    weights = (codes - np.repeat(zeros, 32, 1)) * np.repeat(scales.astype(np.float64), 32, 1)
    activations = x8 * np.repeat(scale.astype(np.float64), 32, 1)
    np.testing.assert_allclose(
        reference.linear_packed(x8, scale, codes, scales, zeros), activations @ weights.T, rtol=1e-5
    )
    np.testing.assert_array_equal(total, x8.reshape(3, 2, 32).sum(2))


def test_quantization_error_is_at_most_half_a_step() -> None:
    x = np.random.default_rng(1).standard_normal((4, 128)).astype(np.float32)
    x8, scale, _ = reference.quantize_activation(x, 64)
    error = np.abs(x8 * np.repeat(scale, 64, 1) - x)
    assert np.all(error <= np.repeat(scale, 64, 1) * 0.5001)


def test_oracle_and_packing_import_no_tvm() -> None:
    """The oracle must not share code with what it judges, and reading packed files should not load a compiler."""
    code = (
        "import sys, bitwright.codegen.reference.linear, bitwright.codegen.packing, bitwright.codegen.linear;"
        "sys.exit('tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
