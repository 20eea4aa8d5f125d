"""Files that are broken, or that lie, end in our errors: what is wrong, where, and which limit it broke."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from bitwright.errors import BitwrightError, InputError, UnsupportedError, UsageError
from bitwright.frontend import load

WIDTH, VOCAB = 32, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,),
    "model.layers.0.input_layernorm.weight": (WIDTH,), "model.layers.0.post_attention_layernorm.weight": (WIDTH,),
    "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH), "model.layers.0.self_attn.k_proj.weight": (16, WIDTH),
    "model.layers.0.self_attn.v_proj.weight": (16, WIDTH), "model.layers.0.self_attn.o_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.mlp.gate_proj.weight": (64, WIDTH), "model.layers.0.mlp.up_proj.weight": (64, WIDTH),
    "model.layers.0.mlp.down_proj.weight": (WIDTH, 64),
}  # fmt: skip


def expect(error: type[BitwrightError], path: Path, what: str, limit: str = "", **options: Any) -> BitwrightError:
    """``load(path)`` ends in ``error`` whose text holds ``what`` and ``limit`` and says where."""
    with pytest.raises(error) as caught:
        load(path, **options)
    assert what in caught.value.what
    assert limit in (caught.value.limit or "")
    assert caught.value.where
    return caught.value


# ---------------------------------------------------------------- HF folders


def safetensors(entries: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound HF folder; tests break one thing in it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_weights(tmp_path, SHAPES)
    return tmp_path


def write_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    entries, data = {}, b""
    for name, shape in shapes.items():
        content = np.ones(shape, np.float32).tobytes()
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    (folder / "model.safetensors").write_bytes(safetensors(entries, data))


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_no_such_model(tmp_path: Path) -> None:
    error = expect(InputError, tmp_path / "absent", "there is no model")
    assert "smollm2-135m" in (error.remedy or "")


def test_folder_without_config(tmp_path: Path) -> None:
    expect(InputError, tmp_path, "holds no config.json")


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x80\x04")
    expect(InputError, tmp_path / "model.bin", "is no model that can be read", "ends in .onnx or .gguf")


@pytest.mark.parametrize(
    ("content", "what", "limit"),
    [
        (b'{"model_type": "llama"', "not valid JSON", "delimiter"),
        (b"\xff\xfe{}", "not valid JSON", "utf-8"),
        (b"[1, 2]", "holds a JSON list", "object"),
        (b"[" * 100_000, "not valid JSON", "recursion"),
    ],
    ids=["truncated", "invalid UTF-8", "a list", "nested too deeply"],
)
def test_config_that_is_not_json(folder: Path, content: bytes, what: str, limit: str) -> None:
    (folder / "config.json").write_bytes(content)
    expect(InputError, folder, what, limit)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"hidden_size": 33}, "the config of the model cannot be loaded"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"vocab_size": 1 << 23}, "the config describes"),
        ({"num_hidden_layers": 300}, "the config describes"),
        ({"intermediate_size": 96}, "0 weights are missing and 3 have another shape"),
        ({"num_hidden_layers": 2}, "9 weights are missing"),
    ],
    ids=lambda value: next(iter(value.items()), None).__repr__() if isinstance(value, dict) else "",
)
def test_absurd_or_foreign_config(folder: Path, changes: dict[str, Any], what: str) -> None:
    write_config(folder, **changes)
    expect(InputError, folder, what)


def test_unknown_architecture(folder: Path) -> None:
    write_config(folder, model_type="perceptron-9000", architectures=["PerceptronForCausalLM"])
    error = expect(UnsupportedError, folder, "not supported by the installed transformers")
    assert error.__cause__ is not None


def test_remote_code_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    write_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    expect(UnsupportedError, folder, "not supported by the installed transformers")
    assert not (folder / "ran").exists()


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    expect(UnsupportedError, folder, "no safetensors weights", "pickled weights are never opened")


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "a header of 0 bytes in a file of 0"),
        (b"\x01\x02", "in a file of 2"),
        (struct.pack("<Q", 1 << 60) + b"{}", "a header of 1152921504606846976 bytes"),
        (safetensors(one(), b"")[:-2], "a header of"),
        (struct.pack("<Q", 3) + b"{]}", "not valid JSON"),
        (safetensors({"w": 3}, b""), "its entry is not an object"),
        (safetensors(one("F33"), bytes(8)), "dtype 'F33'"),
        (safetensors(one(shape=[-2]), bytes(8)), "shape [-2]"),
        (safetensors(one(shape=[1 << 61, 1 << 61]), bytes(8)), "8 bytes of data"),
        (safetensors(one(offsets=[0, 16]), bytes(8)), "data_offsets [0, 16]"),
        (safetensors(one(offsets=[8, 0]), bytes(8)), "data_offsets [8, 0]"),
        (safetensors(one(shape=[3]), bytes(8)), "8 bytes of data"),
        (safetensors(one() | {"v": one()["w"]}, bytes(8)), "its data begins at 0"),
        (safetensors(one(), bytes(12)), "holds 12 bytes of data"),
    ],
)
def test_lying_safetensors(folder: Path, content: bytes, what: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    expect(InputError, folder, what)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "weights.bin"])
def test_index_that_points_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    expect(InputError, folder, f"the index names the file '{name}'", "in the same folder")


def test_index_names_a_missing_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    expect(InputError, folder, "the weight file 'a.safetensors' is missing")


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer"),
        ("tokenizer.json", b"{", "not valid JSON"),
        ("generation_config.json", b'{"eos_token_id": ["</s>"]}', "token ids ['</s>']"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template is no text"),
        ("chat_template.jinja", b"\xff\xff", "chat template is not UTF-8"),
    ],
)
def test_broken_companions(folder: Path, file: str, content: bytes, what: str) -> None:
    (folder / file).write_bytes(content)
    expect(InputError, folder, what)


# ---------------------------------------------------------------- GGUF files


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    version: int = 3,
    **lies: int,
) -> bytes:
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama")] if pairs is None else pairs
    tensors = tensors or []
    counts = (lies.get("tensor_count", len(tensors)), lies.get("pair_count", len(pairs)))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def tensor(name: str = "w", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "0 bytes"),
        (b"GGUF\x03", "5 bytes"),
        (b"GGML" + gguf()[4:], "it begins with b'GGML'"),
        (gguf(tensor_count=1 << 60), "1152921504606846976 tensors"),
        (gguf(pair_count=1 << 40), "1099511627776 pairs"),
        (gguf(pair_count=2).rstrip(b"\0"), "needs"),
        (gguf([struct.pack("<Q", 1 << 50) + b"x"]), "a key at byte 32 needs 1125899906842624 bytes"),
        (gguf([text("k") + struct.pack("<I", 77)]), "'k' has type 77"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 8, 1 << 50)]), "claims 1125899906842624 strings"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 4, 1 << 50)]), "needs 4503599627370496 bytes"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 9, 1)]), "an array of type 9"),
        (gguf([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<I", 4)]), "is not UTF-8"),
        (gguf([text("general.alignment") + struct.pack("<II", 4, 3)]), "general.alignment is 3"),
        (gguf(tensors=[tensor(shape=(1,) * 5)]), "has rank 5"),
        (gguf(tensors=[tensor(shape=(1 << 40, 1 << 20))], data=bytes(64)), "data at"),
        (gguf(tensors=[tensor()], data=bytes(64)), "data at"),
        (gguf(tensors=[tensor(offset=7)], data=bytes(256)), "data at"),
        (gguf(tensors=[tensor(shape=(31,), kind=2)], data=bytes(64)), "rows of 31 numbers"),
        (gguf(tensors=[tensor(), tensor()], data=bytes(256)), "its name occurs twice"),
        (gguf(pairs=[]), "general.architecture is None"),
        (
            gguf(
                [
                    text("general.architecture") + struct.pack("<I", 8) + text("llama"),
                    text("llama.block_count") + struct.pack("<II", 4, 1000000),
                ]
            ),
            "1000000 layers",
        ),
    ],
)
def test_lying_gguf(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    expect(InputError, tmp_path / "model.gguf", what)


@pytest.mark.parametrize(
    ("content", "what"),
    [(gguf(version=99), "GGUF version 99"), (gguf(tensors=[tensor(kind=250)], data=bytes(256)), "tensor type 250")],
)
def test_gguf_of_another_age(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    expect(UnsupportedError, tmp_path / "model.gguf", what)


def test_gguf_of_an_unknown_architecture(tmp_path: Path) -> None:
    name = text("general.architecture") + struct.pack("<I", 8) + text("perceptron")
    (tmp_path / "model.gguf").write_bytes(gguf([name]))
    error = expect(UnsupportedError, tmp_path / "model.gguf", "not supported by the installed transformers")
    assert error.__cause__ is not None


# ---------------------------------------------------------------- ONNX files

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
