"""Every architecture of the zoo, in every spelling, becomes the same canonical model as HF computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from bitwright.frontend import CacheShape, ImportedModel
from bitwright.frontend.canonical import validate
from bitwright.frontend.interpreter import Interpreter
from tests.frontend import zoo

TOLERANCE = 5e-5  # float32 sums in another order, on logits of a few units

Importer = Callable[..., ImportedModel]

OPSET_23 = [(name, 23, "sdpa") for name in zoo.ENTRIES]
PRIMITIVES = [("llama_tied", 18, "eager"), ("gpt2", 18, "eager"), ("bert", 18, "eager")]
MORE_PRIMITIVES = [
    (name, opset, attention)
    for name, opset, attention in [
        *((name, 18, "eager") for name in ("qwen3", "gemma3", "phi3_partial", "olmo2")),
        *((name, 18, "sdpa") for name in ("llama_tied", "gpt2", "bert")),
        ("llama_tied", 17, "eager"),
        ("gpt2", 24, "sdpa"),
    ]
]
SPELLINGS = [*OPSET_23, *PRIMITIVES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_PRIMITIVES)]


def run_split(model: ImportedModel, ids: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Logits [n, vocab] of ``ids`` fed in pieces of ``lengths`` through the cache."""
    interpreter = Interpreter(model.graph)
    past, rows, start = interpreter.empty_past(), [], 0
    for length in lengths:
        logits, past = interpreter.step(ids[start : start + length], past)
        rows.append(logits)
        start += length
    return np.concatenate(rows)


@pytest.mark.parametrize(("name", "opset", "attention"), SPELLINGS)
def test_canonical_graph_equals_torch(imported: Importer, name: str, opset: int, attention: str) -> None:
    model = imported(name, opset, attention)
    validate(model.graph)
    ids = zoo.prompt_ids(40)
    reference = zoo.reference_logits(name, ids)
    if zoo.ENTRIES[name].kind == "encoder":
        import torch

        feeds = {"input_ids": torch.from_numpy(ids)[None], "position_ids": torch.arange(40)[None]}
        feeds["token_type_ids"] = torch.zeros(1, 40, dtype=torch.int64)
        feeds = {value.name: feeds[value.name] for value in model.graph.graph.inputs}
        computed = Interpreter(model.graph).run(feeds, ("hidden",))["hidden"][0].detach().numpy()
    else:
        computed = run_split(model, ids, (17, 1, 1, 20, 1))  # longer than the sliding window, then through it
    assert np.max(np.abs(computed - reference)) < TOLERANCE


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_layers_and_sizes_are_those_of_the_config(imported: Importer, name: str) -> None:
    model, config = imported(name, 23, "sdpa"), zoo.build(name).config
    assert (model.kind, model.vocab, model.context) == (zoo.ENTRIES[name].kind, zoo.VOCAB, zoo.CONTEXT)
    if model.kind == "encoder":
        assert model.layers == ()
        return
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert model.layers == (CacheShape(heads, size, size),) * config.num_hidden_layers


def test_sliding_windows_are_found_where_they_are(imported: Importer) -> None:
    nodes = [node for node in imported("gemma3", 23, "sdpa").graph.graph if node.op_type == "Attention"]
    windows = [node.attributes["window"].value if node.domain == "bitwright" else None for node in nodes]
    assert windows == [zoo.SLIDING_WINDOW, None, zoo.SLIDING_WINDOW]
    assert all(node.attributes["scale"].value == pytest.approx(48**-0.5) for node in nodes)


def test_partial_rotary_embedding_is_one_node_per_tensor(imported: Importer) -> None:
    graph = imported("phi3_partial", 23, "sdpa").graph.graph
    assert [node.attributes["rotary_embedding_dim"].value for node in graph if node.op_type == "RotaryEmbedding"] == [
        48
    ] * 4
    assert not any(node.op_type == "Concat" for node in graph)


def test_llama_is_exactly_these_ops(imported: Importer) -> None:
    counts = Counter(node.op_type for node in imported("llama_tied", 23, "sdpa").graph.graph)
    layers = 2
    assert counts == {
        "Gather": 1,
        "RMSNormalization": 2 * layers + 1,
        "MatMul": 7 * layers + 1,
        "RotaryEmbedding": 2 * layers,
        "Attention": layers,
        "Add": 2 * layers,
        "Sigmoid": layers,
        "Mul": 2 * layers,
        "Transpose": 1,
    }


def test_tied_table_is_stored_once(imported: Importer) -> None:
    graph = imported("llama_tied", 23, "sdpa").graph.graph
    head = graph.outputs[0].producer()
    table = next(node.inputs[0] for node in graph if node.op_type == "Gather")
    assert head is not None and head.inputs[1] is not None
    transpose = head.inputs[1].producer()
    assert transpose is not None and transpose.op_type == "Transpose" and transpose.inputs[0] is table


def test_untied_head_is_a_weight_of_its_own(imported: Importer) -> None:
    graph = imported("llama", 23, "sdpa").graph.graph
    head = graph.outputs[0].producer()
    assert head is not None and head.inputs[1] is not None
    assert head.inputs[1].name == "lm_head.weight"
    assert [int(d) for d in head.inputs[1].const_value.shape] == [192, zoo.VOCAB]


def test_weights_keep_their_names(imported: Importer) -> None:
    names = set(imported("qwen3", 23, "sdpa").graph.graph.initializers)
    parameters = {name for name, _ in zoo.build("qwen3").named_parameters()}
    assert parameters - {"model.embed_tokens.weight"} <= names  # the tied table goes by its other name


def test_spelling_does_not_change_the_digest(imported: Importer) -> None:
    assert imported("llama_tied", 23, "sdpa").digest == imported("llama_tied", 18, "eager").digest


def test_inputs_and_outputs_have_canonical_names(imported: Importer) -> None:
    graph = imported("llama_tied", 23, "sdpa").graph.graph
    caches = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert [v.name for v in graph.inputs] == ["input_ids", "position_ids", *(f"past.{c}" for c in caches)]
    assert [v.name for v in graph.outputs] == ["logits", *(f"present.{c}" for c in caches)]
