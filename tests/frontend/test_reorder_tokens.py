"""Rows of the token table in another order: the model's ids and logits stay those of tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bitwright.frontend import canonical
from bitwright.frontend.calibrate.points import Points
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.interpreter.tail import lm_head_input
from bitwright.frontend.reorder.tokens import TokenRows, reorder_tokens, token_rows
from bitwright.program import TOKEN_RANK
from tests.canonical_model import Shape, decoder

IDS = np.arange(30) * 7 % 101


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_tokens_keep_their_logits(tied: bool, bias: bool) -> None:
    model = decoder(Shape(tied=tied, bias=bias))
    place = token_rows(model.graph)
    assert place is not None and place.tokens == 101 and (place.head is None) == tied
    expected = Interpreter(model.graph).logits(IDS)
    graph, before = model.graph.clone(), model.graph.graph.initializers
    order = np.random.default_rng(0).permutation(101)
    reorder_tokens(graph, place, order)
    rule = canonical.RULES["", "Gather"]
    assert all(rule.holds(node) for node in graph.graph if node.op_type == "Gather")
    np.testing.assert_array_equal(Interpreter(graph).logits(IDS), expected)
    np.testing.assert_array_equal(Interpreter(model.graph).logits(IDS), expected)
    weights = graph.graph.initializers
    for name, axis in ((place.table, 0), *([] if place.head is None else [(place.head, 1)])):
        was, now = (np.asarray(values[name].const_value.numpy()) for values in (before, weights))  # type: ignore[union-attr]
        np.testing.assert_array_equal(now, was.take(order, axis))
    assert Points.of(graph).rank == TOKEN_RANK and Points.of(model.graph).rank is None
    assert set(Points.of(graph).look_ups) == set(Points.of(model.graph).look_ups)
    assert lm_head_input(graph.graph.outputs[0]) == lm_head_input(model.graph.graph.outputs[0]) is not None
    assert [value.name for value in graph.graph.outputs] == [value.name for value in model.graph.graph.outputs]


def test_a_table_that_positions_look_up_keeps_its_rows() -> None:
    model = decoder(Shape()).graph
    look_up = next(node for node in model.graph if node.op_type == "Gather")
    look_up.replace_input_with(1, model.graph.inputs[1])
    assert token_rows(model) is None


def test_a_table_with_more_rows_than_logits_keeps_its_rows() -> None:
    model = decoder(Shape(tied=False)).graph
    place = token_rows(model)
    assert isinstance(place, TokenRows)
    table = model.graph.initializers[place.table]
    table.const_value = ir.tensor(np.zeros((104, 96), np.float32), name=table.name)
    table.shape = ir.Shape([104, 96])
    assert token_rows(model) is None
