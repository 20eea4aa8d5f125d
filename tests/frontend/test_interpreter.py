"""The interpreter on whole graphs: answers, observers, gradients, memory, errors."""

from __future__ import annotations

import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.frontend.interpreter import Interpreter
from tests.frontend import canonical, zoo

LOGITS = {"rtol": 1e-4, "atol": 1e-4}
"""Float32 through two layers; logits spread by about one."""

LLAMAS = ("llama_tied", "llama")
IDS = zoo.prompt_ids(40)


@pytest.fixture(scope="module", params=LLAMAS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def interpreter(name: str) -> Interpreter:
    return Interpreter(canonical.llama(zoo.build(name)))


@pytest.fixture
def tied() -> Interpreter:
    return Interpreter(canonical.llama(zoo.build("llama_tied")))


def feeds(interpreter: Interpreter, ids: zoo.Ids = IDS) -> dict[str, torch.Tensor]:
    positions = torch.arange(len(ids))[None]
    return {"input_ids": torch.from_numpy(ids)[None], "position_ids": positions, **interpreter.empty_past()}


def one_node(
    op: str, *inputs: str, domain: str = "", opsets: dict[str, int] | None = None, **attributes: Any
) -> ir.Model:
    """A graph with inputs a and b, float [2, 3], whose output y comes from one node named 'the node'."""
    values = {n: ir.Value(name=n, shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT)) for n in ("a", "b")}
    unknown = {n: ir.Value(name=n) for n in inputs if n not in values}
    node = ir.node(op, [(values | unknown)[n] for n in inputs], attributes=attributes, domain=domain, name="the node")
    node.outputs[0].name = "y"
    graph = ir.Graph(list(values.values()), node.outputs, nodes=[node], opset_imports=opsets or {"": 23})
    return ir.Model(graph, ir_version=11)


# Answers


def test_logits_equal_hf(interpreter: Interpreter, name: str) -> None:
    logits = interpreter.logits(IDS)
    assert logits.dtype == np.float32
    assert logits.shape == (40, zoo.VOCAB)
    np.testing.assert_allclose(logits, zoo.reference_logits(name, IDS), **LOGITS)


def test_greedy_tokens_equal_hf(interpreter: Interpreter, name: str) -> None:
    np.testing.assert_array_equal(interpreter.generate(IDS, 64), zoo.reference_greedy(name, IDS, 64))


@pytest.mark.parametrize("window", [0, 8])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("cuts", [[20], [1, 2, 39], list(range(1, 40))])
def test_split_prefill_and_decode_equal_one_shot(window: int, softcap: float, cuts: list[int]) -> None:
    interpreter = Interpreter(canonical.llama(zoo.build("llama_tied"), window=window, softcap=softcap))
    past, parts = interpreter.empty_past(), []
    for piece in np.split(IDS, cuts):
        logits, past = interpreter.step(piece, past)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts), interpreter.logits(IDS), **LOGITS)
    assert all(cache.shape[2] == 40 for cache in past.values())


def test_last_only_equals_the_last_row_and_computes_no_other(interpreter: Interpreter) -> None:
    shapes = []
    with interpreter.observe(["logits"], lambda _, x: shapes.append(x.shape)):
        last = interpreter.logits(IDS, last_only=True)
    np.testing.assert_allclose(last, interpreter.logits(IDS)[-1:], **LOGITS)
    assert shapes == [(1, 1, zoo.VOCAB)]


def test_last_only_works_where_the_lm_head_is_not_found() -> None:
    graph = canonical.llama(zoo.build("llama"))
    logits = graph.graph.outputs[0]
    softmax = ir.node("Softmax", [logits])
    logits.name, softmax.outputs[0].name = "raw", "logits"
    graph.graph.append(softmax)
    graph.graph.outputs[0] = softmax.outputs[0]
    interpreter = Interpreter(graph)
    np.testing.assert_allclose(interpreter.logits(IDS, last_only=True), interpreter.logits(IDS)[-1:], **LOGITS)


def test_float64_stands_for_float32(name: str) -> None:
    precise = Interpreter(canonical.llama(zoo.build(name)), dtype=torch.float64)
    seen = []
    with precise.observe(["final"], lambda _, x: seen.append(x.dtype)):
        logits = precise.logits(IDS)
    assert seen == [torch.float64]
    np.testing.assert_allclose(logits, zoo.reference_logits(name, IDS), **LOGITS)


def test_hidden_of_an_encoder_counts_positions_and_defaults_to_token_types_of_zero() -> None:
    nodes, tables = [], {}

    def rows(table: str, ids: str) -> ir.Value:
        array = np.random.default_rng(len(tables)).standard_normal((10, 3)).astype(np.float32)
        tables[table] = ir.Value(name=table, const_value=ir.Tensor(array, name=table))
        inputs.append(ir.Value(name=ids, shape=ir.Shape([1, "n"]), type=ir.TensorType(ir.DataType.INT64)))
        return named(f"{table} rows", ir.node("Gather", [tables[table], inputs[-1]], {"axis": 0}))

    def named(name: str, node: ir.Node) -> ir.Value:
        nodes.append(node)
        node.outputs[0].name = name
        return node.outputs[0]

    inputs: list[ir.Value] = []
    words, kinds = rows("words", "input_ids"), rows("kinds", "token_type_ids")
    both = named("both", ir.node("Add", [words, kinds]))
    hidden = named("hidden", ir.node("Add", [both, rows("places", "position_ids")]))
    graph = ir.Graph(inputs, [hidden], nodes=nodes, initializers=list(tables.values()), opset_imports={"": 23})
    interpreter = Interpreter(ir.Model(graph, ir_version=11))
    word, kind, place = (tables[name].const_value.numpy() for name in ("words", "kinds", "places"))
    np.testing.assert_allclose(interpreter.hidden([4, 9]), word[[4, 9]] + kind[[0, 0]] + place[[0, 1]])
    assert interpreter.feeds([4, 9])["token_type_ids"].tolist() == [[0, 0]]
    np.testing.assert_allclose(interpreter.hidden([4, 9], [1, 2]), word[[4, 9]] + kind[[1, 2]] + place[[0, 1]])
    with pytest.raises(UsageError, match="the graph has no output 'logits'"):
        interpreter.logits([4, 9])


# Observing and differentiating


def test_observers_see_values_in_order_and_may_replace_them(tied: Interpreter) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []
    first = tied.observe(["layer1.up", "layer0.up"], lambda n, x: seen.append((n, tuple(x.shape))))
    tied.observe(["layer1.up"], lambda n, x: torch.zeros_like(x))
    without_mlp = tied.run(feeds(tied), ["layer1.out", "layer1.attended"])
    assert seen == [("layer0.up", (1, 40, 256)), ("layer1.up", (1, 40, 256))]
    torch.testing.assert_close(without_mlp["layer1.out"], without_mlp["layer1.attended"])
    first.remove()
    first.remove()
    tied.run(feeds(tied))
    assert len(seen) == 2


def test_run_computes_only_what_is_asked(tied: Interpreter) -> None:
    seen: list[str] = []
    tied.observe(["layer0.out", "layer1.out", "logits"], lambda n, _: seen.append(n))
    result = tied.run(feeds(tied), ["layer0.out", "table"])
    assert seen == ["layer0.out"]
    assert set(result) == {"layer0.out", "table"}


def test_values_that_are_given_are_not_computed_and_nothing_before_them_is(tied: Interpreter) -> None:
    values = tied.run(feeds(tied), ["layer0.out", "logits"])
    seen: list[str] = []
    names = ["layer0.attended", "layer0.out", "layer1.out"]
    with tied.observe(names, lambda name, _: seen.append(name)):
        result = tied.run(feeds(tied), ["logits", "layer0.out"], {"layer0.out": values["layer0.out"]})
    assert seen == ["layer0.out", "layer1.out"]
    torch.testing.assert_close(result, {name: values[name] for name in ("logits", "layer0.out")}, rtol=0, atol=0)
    changed = tied.run(feeds(tied), ["logits"], {"layer0.out": values["layer0.out"] + 1})
    assert not torch.equal(changed["logits"], values["logits"])
    with pytest.raises(UsageError, match="no value 'nothing'"):
        tied.run(feeds(tied), ["logits"], {"nothing": values["logits"]})


def test_weight_gradients_equal_differences() -> None:
    interpreter = Interpreter(canonical.llama(zoo.build("llama_tied")), dtype=torch.float64)
    weight = "model.layers.0.self_attn.k_proj"
    parameter = interpreter.weights[weight].clone().requires_grad_()
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(parameter.shape))

    def loss(value: torch.Tensor) -> torch.Tensor:
        interpreter.weights[weight] = value
        return torch.logsumexp(interpreter.run(feeds(interpreter), ["logits"])["logits"], -1).sum()

    (gradient,) = torch.autograd.grad(loss(parameter), parameter)
    step = 1e-5
    with torch.no_grad():
        slope = (loss(parameter + step * direction) - loss(parameter - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_gradients_flow_to_an_observers_replacement(tied: Interpreter) -> None:
    leaves: dict[str, torch.Tensor] = {}

    def leaf(name: str, x: torch.Tensor) -> torch.Tensor:
        leaves[name] = x.detach().requires_grad_()
        return leaves[name]

    with tied.observe(["layer1.mlp_input"], leaf):
        tied.run(feeds(tied), ["logits"])["logits"].square().sum().backward()
    gradient = leaves["layer1.mlp_input"].grad
    assert gradient is not None and gradient.abs().max() > 0


# Memory


def test_intermediate_values_are_released_after_their_last_reader(tied: Interpreter) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    peak = 0

    def watch(_: str, x: torch.Tensor) -> None:
        nonlocal peak
        alive.append(weakref.ref(x))
        peak = max(peak, sum(reference() is not None for reference in alive))

    names = [
        name for step in tied._steps for name in step.outputs if name and not name.startswith(("present", "table"))
    ]
    tied.observe(names, watch)
    with torch.no_grad():
        result = tied.run(feeds(tied), ["logits"])
    assert len(alive) == len(names)
    assert peak <= 6  # residual, q, k, v, rotated q and k
    assert [reference() is not None for reference in alive].count(True) == 1
    assert result["logits"] is alive[-1]()


def test_float32_weights_are_shared_with_the_model() -> None:
    graph = canonical.llama(zoo.build("llama_tied"))
    interpreter = Interpreter(graph)
    for name, value in graph.graph.initializers.items():
        assert interpreter.weights[name].data_ptr() == value.const_value.numpy().ctypes.data


def test_half_precision_initializers_keep_their_values() -> None:
    array = np.array([1.5, -2.0], dtype=np.float32)
    for dtype, expected in ((ir.DataType.FLOAT16, torch.float16), (ir.DataType.BFLOAT16, torch.bfloat16)):
        tensor = ir.Tensor(array.astype(dtype.numpy()), name="w", dtype=dtype)
        value = ir.Value(name="w", const_value=tensor)
        node = ir.node("Identity", [value])
        node.outputs[0].name = "y"
        model = ir.Model(
            ir.Graph([], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 23}), ir_version=11
        )
        result = Interpreter(model).run({})["y"]
        assert result.dtype == expected
        np.testing.assert_array_equal(result.float().numpy(), array)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, bitwright.frontend.interpreter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Errors


def test_unknown_op_names_node_op_and_domain() -> None:
    with pytest.raises(UnsupportedError) as error:
        Interpreter(one_node("GroupQueryAttention", "a", domain="com.microsoft", opsets={"": 23, "com.microsoft": 1}))
    assert str(error.value) == (
        "the torch interpreter does not know com.microsoft.GroupQueryAttention version 1\n"
        "  where: node 'the node', op GroupQueryAttention, domain com.microsoft\n"
        "  limit: it runs canonical ONNX: opset 23 of ai.onnx and the bitwright domain\n"
        "  remedy: normalise the graph first, or register the op in bitwright/frontend/interpreter/ops"
    )


def test_same_op_of_another_version_or_domain_is_another_op() -> None:
    with pytest.raises(UnsupportedError, match=r"ai\.onnx\.Reshape version 14"):
        Interpreter(one_node("Reshape", "a", "b", opsets={"": 18}))
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.Attention version 1"):
        Interpreter(one_node("Attention", "a", domain="com.microsoft", opsets={"com.microsoft": 1}))
    with pytest.raises(UnsupportedError, match=r"bitwright\.Attention version 2"):
        Interpreter(one_node("Attention", "a", domain="bitwright", opsets={"bitwright": 2}))


def test_domain_that_is_not_imported() -> None:
    with pytest.raises(UnsupportedError, match="the graph uses Attention of a domain it does not import"):
        Interpreter(one_node("Attention", "a", domain="bitwright"))


def test_ai_onnx_may_be_spelled_out() -> None:
    interpreter = Interpreter(one_node("Neg", "a", domain="ai.onnx", opsets={"": 23}))
    a = torch.ones(2, 3)
    torch.testing.assert_close(interpreter.run({"a": a, "b": a})["y"], -a)


def test_unknown_attribute_is_not_ignored() -> None:
    with pytest.raises(UnsupportedError) as error:
        Interpreter(one_node("Softmax", "a", temperature=2))
    assert (
        error.value.what == "the torch interpreter does not know attribute 'temperature' of ai.onnx.Softmax version 13"
    )
    assert error.value.limit == "known attributes: axis"


def test_unwanted_element_type() -> None:
    with pytest.raises(UnsupportedError, match="element type FLOAT8E4M3FN has no place"):
        Interpreter(one_node("Cast", "a", to=17))


def test_output_that_no_function_computes() -> None:
    model = one_node("Neg", "a")
    node = model.graph.node(0)
    node.resize_outputs(2)
    node.outputs[1].name = "more"
    model.graph.outputs.append(node.outputs[1])
    with pytest.raises(UnsupportedError, match=r"computes 1 of 2 outputs of ai\.onnx\.Neg version 13"):
        Interpreter(model).run({"a": torch.ones(2, 3), "b": torch.ones(2, 3)})


def test_value_without_producer() -> None:
    with pytest.raises(InputError, match="value 'ghost' is read before anything computes it"):
        Interpreter(one_node("Add", "a", "ghost"))


def test_initializer_without_values() -> None:
    model = one_node("Add", "a", "w")
    value = model.graph.node(0).inputs[1]
    assert value is not None
    model.graph.initializers["w"] = value
    with pytest.raises(InputError, match="a constant has no values") as error:
        Interpreter(model)
    assert error.value.where == "initializer 'w'"


def test_shapes_that_do_not_fit_name_the_node() -> None:
    interpreter = Interpreter(one_node("Add", "a", "b"))
    with pytest.raises(InputError, match="Add cannot be computed") as error:
        interpreter.run({"a": torch.ones(2, 3), "b": torch.ones(2, 4)})
    assert error.value.where == "node 'the node', op Add, domain ai.onnx, version 14"
    assert error.value.limit == "its inputs: torch.float32 [2, 3], torch.float32 [2, 4]"


def test_inputs_must_be_complete_and_known() -> None:
    interpreter = Interpreter(one_node("Add", "a", "b"))
    with pytest.raises(UsageError, match="graph input 'b' is missing"):
        interpreter.run({"a": torch.ones(2, 3)})
    with pytest.raises(UsageError, match="the graph has no input 'c'"):
        interpreter.run({n: torch.ones(2, 3) for n in "abc"})


def test_unknown_value_names_close_ones(tied: Interpreter) -> None:
    with pytest.raises(UsageError, match=r"the graph computes no value 'layer0\.upp'") as error:
        tied.observe(["layer0.upp"], lambda *_: None)
    assert error.value.remedy is not None and "layer0.up" in error.value.remedy
    with pytest.raises(UsageError, match="the graph computes no value 'zzz'"):
        tied.run(feeds(tied), ["zzz"])


@pytest.mark.parametrize("ids", [[], [[1, 2]], [0.5], 3])
def test_ids_are_one_sequence_of_integers(tied: Interpreter, ids: Any) -> None:
    with pytest.raises(UsageError, match="token ids are an array of"):
        tied.logits(ids)


@pytest.mark.parametrize("ids", [[0, zoo.VOCAB], [-1]])
def test_ids_outside_the_vocabulary(tied: Interpreter, ids: list[int]) -> None:
    with pytest.raises(UsageError, match="outside the vocabulary") as error:
        tied.logits(ids)
    assert error.value.limit == f"0 to {zoo.VOCAB - 1}"


def test_a_decoder_has_no_hidden_states(tied: Interpreter) -> None:
    with pytest.raises(UsageError, match="the graph has no output 'hidden'"):
        tied.hidden([1])
