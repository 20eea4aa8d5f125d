"""Import keeps the structure, cuts what prefill does not need, and names what it cannot convert."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from bitwright.errors import UnsupportedError
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.relax.module import import_model
from tests.canonical_model import Shape, decoder
from tests.passes.ir import named, operators


def _node(model: ImportedModel, op: str) -> ir.Node:
    return next(node for node in model.graph.graph if node.op_type == op)


def test_entry_points_and_their_operators() -> None:
    program = import_model(decoder(Shape(layers=2)), capacity=50)
    assert program.capacity == 64  # whole blocks of 16 tokens
    for entry in ("prefill", "decode", "score"):
        found = operators(program, entry)
        assert (found["linear"], found["embedding"], found["rope"], found["attention"]) == (15, 1, 4, 2)


def test_prefill_computes_only_the_last_row_after_the_last_attention() -> None:
    program = import_model(decoder(Shape(layers=2)), capacity=64)
    rows = [str(call.args[0].ty.shape.values[0]) for call in named(program, "linear", "prefill")]
    # Seven layers of the first block and q, k, v of the second see all tokens; the last five see one.
    assert rows == ["n"] * 10 + ["T.int64(1)"] * 5
    assert operators(program, "prefill")["take_last"] == 2  # the attention's result and the residual stream


def test_matrices_are_parameters_with_outputs_first() -> None:
    model = decoder(Shape(layers=1))
    parameter = import_model(model, capacity=64).parameters["layers.0.gate.weight.T"]
    source = model.graph.graph.initializers["layers.0.gate.weight"].const_value
    assert parameter.shape == (160, 96)
    assert source is not None and (parameter.load() == source.numpy().T).all()


def _rename(op: str, new: str, domain: str = "") -> Callable[[ImportedModel], None]:
    def change(model: ImportedModel) -> None:
        node = _node(model, op)
        node.op_type, node.domain = new, domain

    return change


def _mask(model: ImportedModel) -> None:
    node = _node(model, "Attention")
    node.replace_input_with(3, node.inputs[0])


def _no_cache(model: ImportedModel) -> None:
    node = _node(model, "Attention")
    node.replace_input_with(4, None)


def _no_positions(model: ImportedModel) -> None:
    _node(model, "RotaryEmbedding").replace_input_with(3, None)


def _heads(model: ImportedModel) -> None:
    _node(model, "Attention").attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename("Sigmoid", "Frobnicate"), "no converter"),
        (_rename("Sigmoid", "Sigmoid", "com.example"), "domain com.example"),
        (_mask, "an explicit mask remains"),
        (_no_cache, "causal attention needs a cache"),
        (_no_positions, "position ids are missing"),
        (_heads, "3 query heads over 2 key/value heads"),
    ],
)
def test_what_cannot_be_converted_is_named(change: Callable[[ImportedModel], None], message: str) -> None:
    model = decoder(Shape(layers=1))
    change(model)
    with pytest.raises(UnsupportedError) as caught:
        import_model(model, capacity=64)
    text = str(caught.value)
    assert message in text and "node '" in text and "operator " in text and "domain " in text
