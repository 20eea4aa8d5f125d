"""Moments by gradients: against gradients that torch computes for every token and layer on its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright.frontend.calibrate.collect import collect
from bitwright.frontend.calibrate.gradients import sampled_labels
from bitwright.frontend.calibrate.products import products
from bitwright.frontend.interpreter import Interpreter
from bitwright.moments import MomentStore
from tests.canonical_model import Shape, decoder


def _store(folder: Path) -> MomentStore:
    return MomentStore(folder, "0" * 64)


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_counts_by_the_gradient_at_the_products(tmp_path: Path, tied: bool) -> None:
    model = decoder(Shape(layers=1, tied=tied))
    windows = np.random.default_rng(1).integers(0, model.vocab, (2, 12))
    found = collect(model, Interpreter(model.graph), windows, _store(tmp_path), by_gradient=True)

    listed = products(model.graph)
    interpreter = Interpreter(model.graph)
    sums = {p.activation: np.zeros((p.inputs, p.inputs)) for p in listed}
    masses = dict.fromkeys(sums, 0.0)
    for number, window in enumerate(windows):
        seen: dict[str, torch.Tensor] = {}

        def add_zero(name: str, value: torch.Tensor, seen: dict[str, torch.Tensor] = seen) -> torch.Tensor:
            seen[name] = torch.zeros_like(value, requires_grad=True)
            return value + seen[name]  # the gradient of what is added is the gradient of the output

        names = [p.output for p in listed]
        with interpreter.observe(names, add_zero):
            logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
        answers = sampled_labels(logits.detach().softmax(-1), 0, number)[:, None]
        likelihood = logits.log_softmax(-1).gather(1, answers).sum()
        gradients = dict(zip(names, torch.autograd.grad(likelihood, [seen[n] for n in names]), strict=True))
        inputs = interpreter.run(interpreter.feeds(window), list(sums))
        for activation in sums:
            x = inputs[activation][0].double().numpy()
            outputs = [p.output for p in listed if p.activation == activation]
            energy = sum(gradients[n][0].double().square().sum(-1) for n in outputs)
            assert isinstance(energy, torch.Tensor)
            energy = energy.sqrt()
            sums[activation] += x.T @ (x * energy.numpy()[:, None])
            masses[activation] += float(energy.sum())
    for p in listed:
        moment = found.of(p.weight)
        assert moment is not None and moment.dtype == np.float32
        expected = sums[p.activation] / masses[p.activation]
        np.testing.assert_allclose(moment, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_passes_and_repetitions_give_the_same_bytes(tmp_path: Path) -> None:
    model = decoder()
    windows = np.random.default_rng(1).integers(0, model.vocab, (2, 12))
    whole = collect(model, Interpreter(model.graph), windows, _store(tmp_path / "a"), by_gradient=True)
    parts = collect(
        model, Interpreter(model.graph), windows, _store(tmp_path / "b"), by_gradient=True, memory=3 * 4 * 96 * 96
    )
    plain = collect(model, Interpreter(model.graph), windows, _store(tmp_path / "c"))
    for p in products(model.graph):
        first, second, other = whole.of(p.weight), parts.of(p.weight), plain.of(p.weight)
        assert first is not None and other is not None
        np.testing.assert_array_equal(first, second)
        assert np.abs(first - other).max() > 1e-3 * np.abs(other).max()


def test_a_calibrating_run_leaves_nothing_behind_in_the_interpreter(tmp_path: Path) -> None:
    model = decoder(Shape(layers=1))
    interpreter = Interpreter(model.graph)
    ids = np.arange(12)
    before = interpreter.logits(ids)
    collect(model, interpreter, ids[None], _store(tmp_path), by_gradient=True)
    np.testing.assert_array_equal(interpreter.logits(ids), before)
    assert not any(weight.requires_grad or weight.grad is not None for weight in interpreter.weights.values())
