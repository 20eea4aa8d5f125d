"""RMSNorm and LayerNorm kernels against the oracle and against torch."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.norm import NormSpec, build_norm
from bitwright.codegen.quantized_rows import SCALE_BITS, QuantizedRows
from bitwright.codegen.reference import norm as reference
from bitwright.codegen.reference.linear import rounded_up
from bitwright.errors import UnsupportedError

from .harness import assert_close, call, empty
from .tolerances import NORM

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


@pytest.mark.parametrize("width", [1, 5, 20, 64, 576, 1000])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_matches_oracle_at_any_width(kind: str, width: int) -> None:
    spec = NormSpec(kind, width, 1e-5, bias=kind == "layer")
    gain, bias = normal(width), normal(width)
    oracle = getattr(reference, f"{kind}_norm")
    for rows in (1, 3, 70000 // width + 1):  # the last goes parallel
        x = normal(rows, width) * 3 + 1
        arguments = [x, gain, *([bias] if spec.bias else []), empty(rows, width)]
        (y,) = call(build_norm, spec, *arguments, outputs=(len(arguments) - 1,))
        assert_close(y, oracle(x, gain, 1e-5, bias if spec.bias else None), NORM)


def test_oracle_is_torch() -> None:
    torch = pytest.importorskip("torch")
    x, gain, bias = normal(3, 48), normal(48), normal(48)
    tensors = [torch.from_numpy(a) for a in (x, gain, bias)]
    rms = torch.nn.functional.rms_norm(tensors[0], (48,), tensors[1], 1e-6)
    layer = torch.nn.functional.layer_norm(tensors[0], (48,), tensors[1], tensors[2], 1e-6)
    assert_close(reference.rms_norm(x, gain, 1e-6), rms.numpy(), NORM)
    assert_close(reference.layer_norm(x, gain, 1e-6, bias), layer.numpy(), NORM)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("rows", [1, None])
def test_residual_addition_gives_sum_and_norm(rows: int | None, lanes: int) -> None:
    spec = NormSpec("rms", 100, 1e-6, residual=True, rows=rows, lanes=lanes)
    n = rows or 7
    x, residual, gain = normal(n, 100), normal(n, 100), normal(100)
    total, y = call(build_norm, spec, x, residual, gain, empty(n, 100), empty(n, 100), outputs=(3, 4))
    np.testing.assert_array_equal(total, x + residual)
    assert_close(y, reference.rms_norm(x + residual, gain, 1e-6), NORM)


def test_zero_row_is_zero_and_eps_counts() -> None:
    spec = NormSpec("rms", 16, 1e-2)
    x = np.stack([np.zeros(16), np.full(16, 1e-3)]).astype("float32")
    (y,) = call(build_norm, spec, x, np.ones(16, "float32"), empty(2, 16), outputs=(2,))
    assert (y[0] == 0).all()
    np.testing.assert_allclose(y[1], 1e-3 / np.sqrt(1e-6 + 1e-2), rtol=1e-6)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no kernel for norm kind 'batch'"):
        NormSpec("batch", 16, 1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [32, 64, 0])
@pytest.mark.parametrize("rows", [1, None])
def test_quantized_result_is_the_quantized_norm(rows: int | None, group: int) -> None:
    spec = NormSpec("rms", 192, 1e-6, residual=True, rows=rows, quantize=QuantizedRows(group))
    n, groups = rows or 5, 192 // (group or 192)
    x, residual, gain = normal(n, 192), normal(n, 192), normal(192)
    outputs = [empty(n, 192), np.zeros((n, 192), np.int8), empty(n, groups), np.zeros((n, groups), np.int32)]
    total, x8, scale, sums = call(build_norm, spec, x, residual, gain, *outputs, outputs=(3, 4, 5, 6))
    expected = reference.rms_norm(x + residual, gain, 1e-6)
    np.testing.assert_array_equal(total, x + residual)
    grouped = expected.reshape(n, groups, -1)
    assert_close(scale, rounded_up((np.abs(grouped).max(2) / 127).astype(np.float32), SCALE_BITS[1]), NORM)
    # A code may differ by one where the float result differs in its last bit.
    assert np.abs(x8.reshape(grouped.shape) - grouped / scale[:, :, None]).max() < 0.5 + 1e-3
    np.testing.assert_array_equal(sums, x8.reshape(grouped.shape).astype(np.int32).sum(2))


def test_a_group_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="cannot quantize activations of 100 inputs"):
        build_norm(NormSpec("rms", 100, 1e-6, quantize=QuantizedRows(32)))
