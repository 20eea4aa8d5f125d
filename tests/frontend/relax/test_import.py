"""Import keeps the structure, cuts what prefill does not need, and names what it cannot convert."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from bitwright.errors import UnsupportedError
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.relax.module import import_model
from tests.canonical_model import Shape, decoder
from tests.passes.ir import named, operators
from tests.unusual_models import Unusual, learned_positions


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


def _replace(node: ir.Node, index: int, shape: tuple[int, ...]) -> None:
    """Let the node read a new constant of another shape."""
    value = node.inputs[index]
    assert value is not None
    value.const_value = ir.tensor(np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        ("RMSNormalization", {1: (1,)}, "a gain of shape [1] for rows of 96"),
        ("RotaryEmbedding", {1: (96, 8), 2: (96, 8)}, "do not rotate 32 elements of a head of 32"),
        ("RotaryEmbedding", {1: (63, 16), 2: (63, 16)}, "a table of 63 positions in a context of 64"),
    ],
)
def test_constants_that_kernels_would_read_past_are_refused(
    op: str, shapes: dict[int, tuple[int, ...]], message: str
) -> None:
    model = decoder(Shape(layers=1))
    for index, shape in shapes.items():
        _replace(_node(model, op), index, shape)
    with pytest.raises(UnsupportedError) as caught:
        import_model(model, capacity=64)
    assert message in str(caught.value)


def test_a_position_table_shorter_than_the_context_is_refused() -> None:
    model = learned_positions()
    _replace(next(node for node in model.graph.graph if node.inputs[1] is model.graph.graph.inputs[1]), 0, (50, 96))
    with pytest.raises(UnsupportedError, match="a table of 50 positions in a context of 64"):
        import_model(model, capacity=64)


def test_a_product_over_more_than_tokens_and_width_is_refused() -> None:
    b = Unusual()
    shape = b.constant("shape", np.array([1, -1, 3, 32]))
    heads = b.node("Reshape", [b.x, shape])
    b.node("MatMul", [heads, b.weights("w", 32, 32)])
    b.add(b.mlp("0", b.norm("norm1", b.x)))
    with pytest.raises(UnsupportedError, match="the left factor has 4 axes"):
        import_model(b.finish(), capacity=64)


@pytest.mark.parametrize(
    ("start", "end", "columns"),
    [(0, 32, 32), (-32, 2**62, 32), (-500, 7, 7), (90, 200, 6), (-10, -3, 7)],
)
def test_slices_are_bounded_as_onnx_bounds_them(start: int, end: int, columns: int) -> None:
    b = Unusual()
    bounds = [b.constant(name, np.array([value])) for name, value in (("s", start), ("e", end), ("axes", -1))]
    part = b.node("Slice", [b.x, *bounds])
    b.add(b.project("back", part, columns, 96))
    program = import_model(b.finish(), capacity=64)
    assert [int(c.args[1].ty.shape.values[1]) for c in named(program, "linear")] == [columns, 96]
    assert int(named(program, "linear")[0].args[0].ty.shape.values[1]) == columns


def test_slices_of_tokens_are_refused() -> None:
    b = Unusual()
    bounds = [b.constant(name, np.array([value])) for name, value in (("s", 1), ("e", 2), ("axes", 1))]
    b.add(b.node("Slice", [b.x, *bounds]))
    with pytest.raises(UnsupportedError, match="tokens are cut off"):
        import_model(b.finish(), capacity=64)
