"""ONNX files that are broken, or that lie, end in our errors: what is wrong, where, and which limit it broke."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from bitwright.errors import BitwrightError, InputError, UnsupportedError, UsageError
from bitwright.frontend import load
from tests.frontend.malformed import expect

WIDTH, VOCAB = 32, 64

Build = Callable[..., onnx.ModelProto]


def bag_of_words(*nodes: onnx.NodeProto, opset: int = 23, inputs: tuple[str, ...] = ("input_ids",)) -> onnx.ModelProto:
    """ids -> table rows -> ``nodes`` from "x" to "y" -> logits; the smallest model of tokens."""
    graph = oh.make_graph(
        [
            oh.make_node("Gather", ["table", "input_ids"], ["x"], name="embed"),
            *(nodes or (oh.make_node("Relu", ["x"], ["y"], name="act"),)),
            oh.make_node("MatMul", ["y", "head"], ["logits"], name="head"),
        ],
        "g",
        [oh.make_tensor_value_info(name, onnx.TensorProto.INT64, ["b", "n"]) for name in inputs],
        [oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", "n", VOCAB])],
        [
            onnx.numpy_helper.from_array(np.ones((VOCAB, WIDTH), np.float32), "table"),
            onnx.numpy_helper.from_array(np.ones((WIDTH, VOCAB), np.float32), "head"),
        ],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset), oh.make_opsetid("acme", 1)])


def write(tmp_path: Path, model: onnx.ModelProto) -> Path:
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "model.onnx"


def test_the_smallest_model_is_sound(tmp_path: Path) -> None:
    assert load(write(tmp_path, bag_of_words()), context=16).vocab == VOCAB


@pytest.mark.parametrize("keep", [0, 1, 100, -100])
def test_truncated_onnx(tmp_path: Path, keep: int) -> None:
    content = bag_of_words().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content[:keep])
    expect(InputError, tmp_path / "model.onnx", "ONNX", context=16)


def test_garbage_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(np.random.default_rng(0).bytes(4096))
    expect(InputError, tmp_path / "model.onnx", "malformed ONNX file", context=16)


def external(model: onnx.ModelProto, location: str, offset: int = 0, length: int = VOCAB * WIDTH * 4) -> None:
    initializer = model.graph.initializer[0]
    initializer.ClearField("raw_data")
    initializer.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        initializer.external_data.add(key=key, value=value)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/passwd", "sub/../../outside.data", "link.data"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside.data").write_bytes(bytes(VOCAB * WIDTH * 4))
    (inside / "link.data").symlink_to(tmp_path / "outside.data")
    model = bag_of_words()
    external(model, location)
    expect(
        InputError, write(inside, model), f"external data lies at '{location}'", "inside the model's folder", context=16
    )


@pytest.mark.parametrize(
    ("offset", "length", "what"),
    [
        (0, VOCAB * WIDTH * 4 + 4, "bytes 0 to 8196"),
        (4, VOCAB * WIDTH * 4, "bytes 4 to 8196"),
        (1 << 40, VOCAB * WIDTH * 4, "bytes 1099511627776"),
        (0, 16, "bytes 0 to 16"),
    ],
)
def test_external_data_of_another_size(tmp_path: Path, offset: int, length: int, what: str) -> None:
    (tmp_path / "model.data").write_bytes(bytes(VOCAB * WIDTH * 4))
    model = bag_of_words()
    external(model, "model.data", offset, length)
    expect(InputError, write(tmp_path, model), what, "8192 bytes", context=16)


def test_missing_external_data(tmp_path: Path) -> None:
    model = bag_of_words()
    external(model, "model.data")
    expect(InputError, write(tmp_path, model), "the external data file 'model.data' is missing", context=16)


def test_initializer_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    model = bag_of_words()
    model.graph.initializer[0].dims[0] = 1 << 40
    expect(InputError, write(tmp_path, model), "ONNX", context=16)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, number: float) -> None:
    model = bag_of_words()
    content = np.ones((VOCAB, WIDTH), np.float32)
    content[3, 4] = number
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(content, "table"))
    error = expect(InputError, write(tmp_path, model), f"tensor 'table' holds {number}", "finite", context=16)
    assert error.where == f"initializer 'table', element {3 * WIDTH + 4} of {VOCAB * WIDTH}"


@pytest.mark.parametrize(
    ("node", "where"),
    [
        (oh.make_node("Relu", ["x"], ["y"], name="odd", domain="acme"), "node 'odd' (acme::Relu)"),
        (oh.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="acme"), "node 'odd' (acme::Frobnicate)"),
        (oh.make_node("HardSwish", ["x"], ["y"], name="odd"), "node 'odd' (ai.onnx::HardSwish)"),
        (oh.make_node("CumSum", ["x", "axis"], ["y"], name="odd"), "node 'odd' (ai.onnx::CumSum)"),
    ],
)
def test_unknown_op_is_named_with_its_domain(tmp_path: Path, node: onnx.NodeProto, where: str) -> None:
    model = bag_of_words(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "axis"))
    assert where in str(expect(UnsupportedError, write(tmp_path, model), "not understood", context=16).where)


def test_unknown_op_of_the_standard_domain(tmp_path: Path) -> None:
    model = bag_of_words(oh.make_node("Frobnicate", ["x"], ["y"], name="odd"))
    error = expect(UnsupportedError, write(tmp_path, model), "ONNX has no operator 'Frobnicate'", context=16)
    assert error.where == "node 'odd' (ai.onnx::Frobnicate)"


def test_control_flow(tmp_path: Path) -> None:
    branch = oh.make_graph(
        [oh.make_node("Identity", ["x"], ["z"])], "b", [], [oh.make_value_info("z", oh.make_tensor_type_proto(1, None))]
    )
    node = oh.make_node("If", ["flag"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    model = bag_of_words(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "flag"))
    error = expect(UnsupportedError, write(tmp_path, model), "control flow ai.onnx::If", context=16)
    assert error.where == "node 'choice' (ai.onnx::If)"


def test_cycle(tmp_path: Path) -> None:
    nodes = (oh.make_node("Add", ["x", "y"], ["u"]), oh.make_node("Relu", ["u"], ["y"]))
    expect(InputError, write(tmp_path, bag_of_words(*nodes)), "malformed ONNX file", context=16)


def test_function_that_calls_itself(tmp_path: Path) -> None:
    model = bag_of_words(oh.make_node("Again", ["x"], ["y"], domain="acme"))
    body = [oh.make_node("Again", ["a"], ["b"], domain="acme")]
    model.functions.append(oh.make_function("acme", "Again", ["a"], ["b"], body, [oh.make_opsetid("acme", 1)]))
    expect(InputError, write(tmp_path, model), "malformed ONNX file", "must not be recursive", context=16)


def test_functions_that_double_forty_times(tmp_path: Path) -> None:
    model = bag_of_words(oh.make_node("F0", ["x"], ["y"], domain="acme"))
    imports = [oh.make_opsetid("acme", 1), oh.make_opsetid("", 23)]
    for level in range(40):
        body = [oh.make_node(f"F{level + 1}", [a], [b], domain="acme") for a, b in (("a", "t"), ("t", "b"))]
        model.functions.append(oh.make_function("acme", f"F{level}", ["a"], ["b"], body, imports))
    body = [oh.make_node("Relu", ["a"], ["b"])]
    model.functions.append(oh.make_function("acme", "F40", ["a"], ["b"], body, imports))
    expect(InputError, write(tmp_path, model), f"{2**40 + 2} nodes", "1000000 nodes", context=16)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    model = bag_of_words(oh.make_node("Add", ["x", "odd"], ["y"], name="add"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(7, np.float32), "odd"))
    error = expect(InputError, write(tmp_path, model), "do not fit each other", context=16)
    assert error.where == "node 'add' (ai.onnx::Add)"


def test_a_constant_of_absurd_size(tmp_path: Path) -> None:
    nodes = (
        oh.make_node("ConstantOfShape", ["size"], ["big"], name="fill"),
        oh.make_node("Add", ["x", "big"], ["y"]),
    )
    model = bag_of_words(*nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20, WIDTH]), "size"))
    error = expect(InputError, write(tmp_path, model), "would have 35184372088832 elements", context=16)
    assert error.where == "node 'fill' (ai.onnx::ConstantOfShape)"


def test_mask_that_depends_on_the_tokens(tmp_path: Path) -> None:
    nodes = (
        oh.make_node("NonZero", ["input_ids"], ["where"], name="find"),
        oh.make_node("Shape", ["where"], ["count"], name="count"),
        oh.make_node("ConstantOfShape", ["count"], ["zeros"], name="zeros"),
        oh.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0, name="sum"),
        oh.make_node("Add", ["x", "zero"], ["y"], name="add"),
    )
    expect(UnsupportedError, write(tmp_path, bag_of_words(*nodes)), "depends on the content of the tokens", context=16)


def test_inputs_that_are_not_text(tmp_path: Path) -> None:
    model = bag_of_words(inputs=("input_ids", "pixel_values"))
    expect(UnsupportedError, write(tmp_path, model), "input 'pixel_values' of the graph is not understood", context=16)


def test_no_token_ids(tmp_path: Path) -> None:
    model = bag_of_words(inputs=("position_ids",))
    model.graph.node[0].input[1] = "position_ids"
    expect(InputError, write(tmp_path, model), "the graph has no input 'input_ids'", context=16)


def test_old_opset(tmp_path: Path) -> None:
    expect(UnsupportedError, write(tmp_path, bag_of_words(opset=11)), "opset 11", "opsets 13 to 24", context=16)


@pytest.mark.parametrize(("context", "error"), [(0, UsageError), (-3, UsageError), (4, UnsupportedError)])
def test_absurd_context(tmp_path: Path, context: int, error: type[BitwrightError]) -> None:
    with pytest.raises(error, match=f"a context of {context} positions"):
        load(write(tmp_path, bag_of_words()), context=context)
