"""The fast Hadamard kernel against its oracle, ``Rotation.apply``."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.activation import build_quantize_activation
from bitwright.codegen.isa import AVX2, AVX512VNNI
from bitwright.codegen.quantized_rows import QuantizedRows
from bitwright.codegen.rotate import RotateSpec, build_rotate
from bitwright.hadamard import Rotation

from .harness import assert_close, call, empty
from .tolerances import NORM

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("width", [576, 1536, 64, 80, 104, 4096, 7])
def test_matches_oracle(width: int, lanes: int, transposed: bool) -> None:
    spec = RotateSpec(Rotation.of(width), transposed, lanes=lanes)
    for rows in (1, 70000 // width):  # the last goes parallel
        x = RNG.standard_normal((rows, width)).astype("float32")
        (y,) = call(build_rotate, spec, x, empty(rows, width), outputs=(1,))
        assert_close(y, spec.rotation.apply(x, transposed=transposed), NORM)


@pytest.mark.parametrize("quantize", [QuantizedRows(32), QuantizedRows(64, 2), QuantizedRows(0)])
@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI])
@pytest.mark.parametrize("rows", [1, None])
def test_quantized_rows_are_those_of_the_rotated_row(rows: int | None, isa: object, quantize: QuantizedRows) -> None:
    width, n, lanes = 1536, rows or 3, isa.lanes  # type: ignore[attr-defined]
    x = RNG.standard_normal((n, width)).astype("float32")
    spec = RotateSpec(Rotation.of(width), rows=rows, lanes=lanes)  # type: ignore[arg-type]
    (y,) = call(build_rotate, spec, x, empty(n, width), outputs=(1,))

    def results() -> list[np.ndarray]:
        tensors = quantize.tensors(n, width)
        return [np.full(tensor.shape, 99, tensor.dtype) for tensor in tensors]

    fused = RotateSpec(spec.rotation, rows=spec.rows, lanes=lanes, quantize=quantize)
    found = call(build_rotate, fused, x, *results(), outputs=(1, 2, 3))

    class Alone:
        """What the harness asks of a spec."""

        name = "quantize_activation"

    expected = call(
        lambda _: build_quantize_activation(width, quantize, isa, spec.rows),  # type: ignore[arg-type]
        Alone,
        y,
        *results(),
        outputs=(1, 2, 3),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
