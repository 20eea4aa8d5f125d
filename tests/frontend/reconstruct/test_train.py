"""Training one block: its error, its steps, and that what it returns is never worse than what it was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import NumericalError
from bitwright.frontend.allowance import Allowance
from bitwright.frontend.calibrate.products import products
from bitwright.frontend.distill.matrix import QuantizedRows
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.reconstruct.blocks import Block, blocks
from bitwright.frontend.reconstruct.train import SCALE_REACH, Reconstructed, Rows, Streams, descend, relative_error
from tests.canonical_model import Shape, decoder

torch = pytest.importorskip("torch")

GROUP = 32


def rounded(weights: Any, bits: int, share: float) -> QuantizedRows:
    """Round to nearest, symmetric, with ``share`` of the range."""
    cut = weights.reshape(len(weights), -1, GROUP)
    scales = (np.abs(cut).max(-1) * share / 2 ** (bits - 1)).astype(np.float16).astype(np.float32)
    ends = (np.full((1, 1), end, np.float32) for end in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    low, high = ends
    values = np.clip(np.rint(cut / scales[:, :, None]), low[0], high[0]).reshape(weights.shape)
    return QuantizedRows(values.astype(np.float32), scales, low, high)


class Case:
    """The first block of a random decoder, behind a prefix that is off by some noise."""

    def __init__(self, seed: int, bits: int, share: float = 1.0) -> None:
        model = decoder(Shape(layers=1, seed=seed))
        names = {product.weight for product in products(model.graph)}
        (self.block,) = blocks(model.graph, "logits", names)
        self.interpreter = Interpreter(model.graph)
        self.weights = {
            name: np.ascontiguousarray(self.interpreter.weights[name.removesuffix(".T")].numpy().T)
            for name in self.block.weights
        }
        self.rows: Rows = {name: (rounded(matrix, bits, share),) for name, matrix in self.weights.items()}
        random = np.random.default_rng(seed)
        self.streams = Streams(self.interpreter, random.integers(0, 101, (6, 24)), 2)
        table = self.interpreter.weights["table"]
        noise = torch.from_numpy(random.standard_normal(table.shape).astype(np.float32))
        noisy = QuantizedRows((table + 0.05 * noise).numpy(), np.ones((101, 1), np.float32), *(np.zeros((1, 1)),) * 2)
        self.streams.begin(self.block.source, {"table": (noisy,)})
        self.streams.target(self.block)

    def train(self, steps: int, allowance: Allowance | None = None) -> Reconstructed:
        return self.streams.train(self.block, self.rows, self.weights, {}, steps, allowance or Allowance(None))

    def error(self, rows: Rows) -> float:
        return self.streams._error(self.block, rows)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 99), bits=st.integers(2, 5), steps=st.integers(1, 12), share=st.floats(0.25, 1.25))
def test_what_is_returned_is_never_worse(seed: int, bits: int, steps: int, share: float) -> None:
    case = Case(seed, bits, share)
    result = case.train(steps)
    assert result.before == case.error(case.rows)
    if result.rows is None:
        assert result.after == result.before
    else:
        assert result.after == case.error(result.rows) < result.before


def test_a_block_learns_to_correct_what_came_before_it() -> None:
    """At 8 bits nothing but the noise of the prefix is left to correct."""
    case = Case(0, 8)
    result = case.train(60)
    assert result.rows is not None and result.after < 0.97 * result.before


def test_codes_move_to_neighbours_and_scales_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, 2)
    result = case.train(20)
    assert result.rows is not None
    changed = 0
    for name, (rows,) in result.rows.items():
        (start,) = case.rows[name]
        assert np.abs(rows.values - start.values).max() <= 1
        np.testing.assert_allclose(rows.scales, start.scales, rtol=SCALE_REACH + 1e-3)
        changed += int((rows.values != start.values).sum())
        np.testing.assert_array_equal(rows.scales, rows.scales.astype(np.float16))
    assert changed > 100


def test_the_whole_reach_is_moved_when_time_ends_before_the_steps() -> None:
    """A million steps in as many seconds as twenty of them take: they move as far as twenty steps would."""
    seconds = iter(np.arange(0, 10_000, 0.25))
    case = Case(3, 2)
    result = case.train(10**6, Allowance(20, clock=lambda: float(next(seconds))))
    assert result.rows is not None
    assert sum(int((rows.values != case.rows[name][0].values).sum()) for name, (rows,) in result.rows.items()) > 100


def test_no_time_is_no_training() -> None:
    case = Case(0, 2)
    result = case.train(20, Allowance(0))
    assert result == Reconstructed(None, result.before, result.before)


def test_errors_are_relative_to_each_token() -> None:
    wanted = torch.tensor([[[3.0, 4.0], [600.0, 800.0]]])
    found = wanted + torch.tensor([[[0.5, 0.0], [0.0, 100.0]]])
    assert float(relative_error(found, wanted)) == pytest.approx((0.01 + 0.01) / 2)
    assert np.isfinite(float(relative_error(wanted * 0, wanted * 0)))


def test_a_step_goes_against_the_sign_of_the_gradient() -> None:
    leaf = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (leaf * torch.tensor([5.0, -0.1, 0.0])).sum().backward()
    descend([(leaf, torch.tensor([1.0, 2.0, 4.0]))], 0.25)
    assert leaf.tolist() == [0.75, 2.5, 3.0] and leaf.grad is None


def test_an_error_that_is_no_number_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(0, 2)
    broken: Block = case.block
    name = broken.weights[0]
    rows = case.rows[name][0]
    rows.scales[0, 0] = np.nan
    with pytest.raises(NumericalError, match="error of a block is nan"):
        case.train(3)
