"""Weights that are not kept: the same results and gradients, with one matrix in memory at a time."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.interpreter.weights import Weights
from tests.canonical_model import Shape, decoder

IDS = np.arange(40) % 30


def as_read_from_a_file(reads: dict[str, int]) -> ir.Model:
    """A decoder whose matrices are made anew whenever they are asked for."""
    model = decoder(Shape()).graph
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if len(tensor.shape) == 2:
            array = tensor.numpy()

            def make(name: str = name, array: np.ndarray = array) -> ir.TensorProtocol:
                reads[name] = reads.get(name, 0) + 1
                return ir.tensor(array.copy())

            value.const_value = ir.LazyTensor(make, dtype=tensor.dtype, shape=ir.Shape(tensor.shape), name=name)
    return model


@pytest.fixture
def interpreters(monkeypatch: pytest.MonkeyPatch) -> tuple[Interpreter, Interpreter]:
    """One that keeps its weights, and one that reads them again."""
    near = Interpreter(as_read_from_a_file({}))
    monkeypatch.setattr("bitwright.frontend.interpreter.runner.RESIDENT_BYTES", 0)
    return near, Interpreter(as_read_from_a_file({}))


def gradient(interpreter: Interpreter) -> torch.Tensor:
    leaves = []

    def leaf(_: str, x: torch.Tensor) -> torch.Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    first = next(name for name in interpreter.weights if interpreter.weights[name].dim() == 2)
    value = next(step.outputs[0] for step in interpreter._steps if first in step.inputs)
    assert value is not None
    with interpreter.observe([value], leaf):
        logits = interpreter.run(interpreter.feeds(IDS), ["logits"])["logits"]
    (found,) = torch.autograd.grad(logits.square().sum(), leaves)
    return found


def test_results_and_gradients_are_the_same(interpreters: tuple[Interpreter, Interpreter]) -> None:
    near, far = interpreters
    np.testing.assert_array_equal(near.logits(IDS), far.logits(IDS))
    torch.testing.assert_close(gradient(near), gradient(far), rtol=0, atol=0)


def test_nothing_is_kept_between_nodes_nor_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.frontend.interpreter.runner.RESIDENT_BYTES", 0)
    interpreter = Interpreter(as_read_from_a_file({}))
    made: list[weakref.ref[torch.Tensor]] = []
    read = interpreter._stored._read

    def watched(name: str) -> torch.Tensor:
        tensor = read(name)
        made.append(weakref.ref(tensor))
        return tensor

    interpreter._stored._read = watched

    def alive() -> int:
        gc.collect()
        return sum(reference() is not None for reference in made)

    most = 0

    def count(_: str, x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, alive())
        return x.detach().requires_grad_()

    outputs = [step.outputs[0] for step in interpreter._steps if step.key.op == "MatMul" and step.outputs[0]]
    with interpreter.observe(outputs, count):
        logits = interpreter.run(interpreter.feeds(IDS), ["logits"])["logits"]
    assert most <= 1  # the one whose product was just observed
    assert alive() == 0
    assert logits.requires_grad


def test_few_weights_are_read_once() -> None:
    reads: dict[str, int] = {}
    interpreter = Interpreter(as_read_from_a_file(reads))
    interpreter.logits(IDS)
    interpreter.logits(IDS)
    assert set(reads.values()) == {1}


def test_they_can_be_kept_for_many_short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.frontend.interpreter.runner.RESIDENT_BYTES", 0)
    reads: dict[str, int] = {}
    interpreter = Interpreter(as_read_from_a_file(reads))
    with interpreter.resident():
        interpreter.generate(IDS, 3)
        assert set(reads.values()) == {1}
    interpreter.generate(IDS, 3)
    assert min(reads.values()) >= 4


def test_what_is_assigned_is_kept_and_deleting_it_brings_the_models_weight_back() -> None:
    tensor = ir.LazyTensor(
        lambda: ir.tensor(np.ones(3, np.float32)), dtype=ir.DataType.FLOAT, shape=ir.Shape([3]), name="w"
    )
    weights = Weights({"w": ir.Value(name="w", const_value=tensor)}, lambda _: torch.ones(3), resident=0)
    assert list(weights) == ["w"] and "w" in weights and "x" not in weights
    changed = torch.zeros(3)
    weights["w"] = changed
    assert weights["w"] is changed
    del weights["w"]
    torch.testing.assert_close(weights["w"], torch.ones(3))
    with pytest.raises(KeyError):
        weights["x"]
