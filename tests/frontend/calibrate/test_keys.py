"""Statistics of keys and values: against sums over values and gradients that torch computes for each layer alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwright.frontend.calibrate.gradients import sampled_labels
from bitwright.frontend.calibrate.keys import collect_heads
from bitwright.frontend.calibrate.points import Points
from bitwright.frontend.interpreter import Interpreter
from tests.canonical_model import Shape, decoder


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_statistics_are_those_of_values_and_gradients(kv_heads: int) -> None:
    model = decoder(Shape(kv_heads=kv_heads))
    windows = np.random.default_rng(1).integers(0, model.vocab, (2, 12))
    ticks: list[tuple[int, int]] = []
    found = collect_heads(
        model, Interpreter(model.graph), windows, 90, seed=3, progress=lambda done, total: ticks.append((done, total))
    )
    assert ticks == [(1, 2), (2, 2)] and len(found) == 2

    interpreter = Interpreter(model.graph)
    for pair, names in zip(found, Points.of(model.graph).caches, strict=True):
        assert pair[0].queries is not None and pair[1].queries is None
        for first, statistics, name in zip((1, 0), pair, names, strict=True):
            held, felt = [], []
            for number, window in enumerate(windows):
                value, gradient = _alone(interpreter, window, name, (3, number), number * (90 - 12))
                held.append(value.reshape(12, kv_heads, 32)[first:])
                felt.append(gradient.reshape(12, kv_heads, 32)[first:])
            x, g = np.concatenate(held).astype(np.float64), np.concatenate(felt).astype(np.float64)
            norm = np.sqrt((g**2).sum((1, 2)))[:, None, None]
            np.testing.assert_allclose(statistics.mean, x.mean(0), atol=1e-5)
            np.testing.assert_allclose(statistics.square, np.einsum("thd,the->hde", x, x) / len(x), atol=1e-5)
            expected = np.einsum("thd,the->hde", g, g / np.maximum(norm, 1e-30)) / len(x)
            np.testing.assert_allclose(statistics.gradients, expected, atol=1e-4 * np.abs(expected).max())


def test_gradients_of_later_runs_leave_out_the_own_one() -> None:
    """Of the last run nobody feels anything, of those before it less than in all; what is held is the same."""
    model = decoder(Shape(layers=1))
    window = np.random.default_rng(3).integers(0, model.vocab, (1, 64))
    everything, later, none = (
        collect_heads(model, Interpreter(model.graph), window, 64, run=run)[0] for run in (0, 32, 64)
    )
    for all_of_it, some, nothing in zip(everything, later, none, strict=True):
        np.testing.assert_array_equal(all_of_it.square, some.square)
        assert np.trace(all_of_it.gradients[0]) > np.trace(some.gradients[0]) > 0
        assert not nothing.gradients.any()


def test_queries_of_a_group_are_averaged() -> None:
    model = decoder(Shape(layers=1, kv_heads=1))
    window = np.random.default_rng(2).integers(0, model.vocab, (1, 12))
    ((keys, _),) = collect_heads(model, Interpreter(model.graph), window, 12)
    interpreter = Interpreter(model.graph)
    (name,) = [str(node.inputs[0].name) for node in model.graph.graph if node.op_type == "Attention"]
    q = interpreter.run(interpreter.feeds(window[0]), (name,))[name][0].detach().numpy().astype(np.float64)
    rows = (q.transpose(1, 0, 2) if q.ndim == 3 else q.reshape(12, 3, 32))[1:].reshape(-1, 32)
    assert keys.queries is not None
    np.testing.assert_allclose(keys.queries[0], rows.T @ rows / len(rows), atol=1e-5)


def _alone(
    interpreter: Interpreter, window: np.ndarray, name: str, seed: tuple[int, int], position: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one value and of the gradient there, with the window at ``position`` and no other value watched."""
    kept: dict[str, torch.Tensor] = {}

    def watch(_: str, value: torch.Tensor) -> torch.Tensor:
        kept["value"], kept["zero"] = value.detach(), torch.zeros_like(value, requires_grad=True)
        return value + kept["zero"]  # the gradient of what is added is the gradient of the value

    feeds = interpreter.feeds(window)
    feeds["position_ids"] = feeds["position_ids"] + position
    with interpreter.observe((name,), watch):
        logs = torch.log_softmax(interpreter.run(feeds, ("logits",))["logits"][0].float(), -1)
    likelihood = logs.gather(1, sampled_labels(logs.detach().exp(), *seed)[:, None]).sum()
    (gradient,) = torch.autograd.grad(likelihood, [kept["zero"]])
    rows = [t[0].transpose(0, 1) if t.dim() == 4 else t[0] for t in (kept["value"], gradient)]
    value, felt = (row.reshape(len(window), -1).numpy() for row in rows)
    return value, felt
