"""Rotated graphs compute what they computed before, and rotate what they can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bitwright.compiling.rotation import rotated
from bitwright.errors import InternalError, UnsupportedError
from bitwright.frontend.canonical import validate
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.rotate.values import map_values, value_places
from bitwright.hadamard import Rotation
from bitwright.rotated_parts import PARTS, Part
from tests.canonical_model import Shape, decoder
from tests.frontend import zoo

Imported = Callable[..., ImportedModel]
LOGITS = 1e-4
"""Largest difference of logits of order one to ten: folded weights are rounded to single precision once more."""

WITHOUT_STREAM = ("gpt2", "gemma3", "olmo2", "bert")
SHAPES = [Shape(heads=4, kv_heads=2, head_dim=24), Shape(bias=True), Shape(tied=False, window=8)]


def result(model: ImportedModel, ids: np.ndarray) -> np.ndarray:
    interpreter, name = Interpreter(model.graph), str(model.graph.graph.outputs[0].name)
    values: np.ndarray = interpreter.run(interpreter.feeds(ids), (name,))[name][0].numpy()
    return values


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_the_zoo_computes_what_transformers_computes(imported: Imported, name: str, part: Part) -> None:
    model, ids = imported(name), zoo.prompt_ids(24)
    if part == "residual" and name in WITHOUT_STREAM:
        with pytest.raises(UnsupportedError, match="residual stream of this model cannot be rotated"):
            rotated(model, [part])
        return
    changed = rotated(model, [part])
    assert changed.places[part] >= len(model.layers)
    assert np.abs(result(changed.model, ids) - zoo.reference_logits(name, ids)).max() < LOGITS
    validate(changed.model.graph)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_at_once_leaves_the_function_as_it_is(shape: Shape) -> None:
    model, ids = decoder(shape), np.arange(40) * 7 % 101
    changed = rotated(model, PARTS).model
    before, after = result(model, ids), result(changed, ids)
    np.testing.assert_allclose(after, before, atol=1e-5 * float(np.abs(before).max()))
    # The original is untouched, and what was rotated differs.
    np.testing.assert_array_equal(result(model, ids), before)
    for name in ("layers.0.v.weight", "layers.1.o.weight", "layers.0.gate.weight", "layers.1.down.weight"):
        old, new = (m.graph.graph.initializers[name].const_value for m in (model, changed))
        assert old is not None and new is not None and np.abs(old.numpy() - new.numpy()).max() > 0.01


def nodes(model: ImportedModel) -> list[ir.Node]:
    return [node for node in model.graph.graph if node.op_type == "Rotate"]


def test_a_tied_table_stays_and_an_untied_one_takes_the_rotation() -> None:
    ids = np.arange(8)
    for tied, on_the_fly in ((True, ["Gather", "Add"]), (False, [])):
        model = decoder(Shape(tied=tied))
        changed = rotated(model, ["residual"]).model
        assert [node.inputs[0].producer().op_type for node in nodes(changed)] == on_the_fly  # type: ignore[union-attr]
        tables = [m.graph.graph.initializers["table"].const_value.numpy() for m in (model, changed)]  # type: ignore[union-attr]
        expected = tables[0] if tied else Rotation.of(96).apply(tables[0])
        np.testing.assert_allclose(tables[1], expected, atol=1e-5)
        gains = [n.inputs[1].const_value.numpy() for n in changed.graph.graph if n.op_type == "RMSNormalization"]  # type: ignore[union-attr]
        assert sum((gain == 1).all() for gain in gains) == len(gains) - tied
        np.testing.assert_allclose(result(changed, ids), result(model, ids), atol=1e-3)


def test_hidden_rows_are_rotated_once_per_layer() -> None:
    changed = rotated(decoder(Shape()), ["hidden"]).model
    assert [node.inputs[0].producer().op_type for node in nodes(changed)] == ["Mul", "Mul"]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["phi3", "gpt2", "llama_tied"])
def test_any_invertible_maps_of_values_fold(imported: Imported, name: str) -> None:
    model, ids = imported(name), zoo.prompt_ids(16)
    graph, random = model.graph.clone(), np.random.default_rng(1)
    places = value_places(graph)
    assert [place.layer for place in places] == list(range(len(model.layers)))
    for place in places:
        noise = random.standard_normal((place.kv_heads, place.size, place.size)) / place.size
        map_values(graph, place, np.eye(place.size) + noise)
    found = Interpreter(graph).logits(ids)
    assert np.abs(found - zoo.reference_logits(name, ids)).max() < LOGITS
    with pytest.raises(InternalError, match="matrices of shape"):
        map_values(graph, places[0], np.eye(3)[None])


def test_values_that_something_else_reads_are_left_alone() -> None:
    model = decoder(Shape(layers=1))
    attention = next(node for node in model.graph.graph if node.op_type == "Attention")
    model.graph.graph.insert_before(attention, ir.Node("", "Neg", [attention.inputs[2]], name="extra"))
    with pytest.raises(UnsupportedError, match="no value that can be rotated"):
        rotated(model, ["value"])


def test_a_stream_that_something_else_reads_is_refused_by_name() -> None:
    model = decoder(Shape(layers=1))
    add: Any = next(node for node in model.graph.graph if node.op_type == "Add")
    model.graph.graph.insert_after(add, ir.Node("", "Neg", [add.outputs[0]], name="extra"))
    with pytest.raises(UnsupportedError, match=r"node 'extra'[\s\S]*leave residual out of --rotate"):
        rotated(model, ["residual"])
