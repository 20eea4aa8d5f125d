"""From a raw graph and what its files say to an ``ImportedModel``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from bitwright.errors import InputError, UnsupportedError
from bitwright.frontend import interface, weights
from bitwright.frontend.canonical import validate
from bitwright.frontend.graph import dims
from bitwright.frontend.model import ImportedModel
from bitwright.frontend.normalise import normalise
from bitwright.frontend.roles import Role


@dataclass(frozen=True)
class Source:
    """A model as its reader found it: a graph that is not canonical yet, and what its files say."""

    graph: ir.Model
    name: str
    context: int
    tokenizer_json: bytes | None = None
    chat_template: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)


def assemble(source: Source, progress: weights.Progress | None = None) -> ImportedModel:
    """Normalise, check and digest.

    Raises:
        UnsupportedError: for a graph that is not understood.
        InputError: for weights that cannot be used.
    """
    model = source.graph
    if progress is not None:
        progress("normalise", 0.0)
    roles = normalise(model, source.context)
    validate(model)
    kind, layers = interface.settle(model, roles)
    digests = weights.settle(model, progress)
    vocab = _vocabulary(model)
    if kind == "decoder":
        _check_head(model, vocab)
    return ImportedModel(
        graph=model,
        kind=kind,
        name=source.name,
        context=source.context,
        vocab=vocab,
        layers=layers,
        tokenizer_json=source.tokenizer_json,
        chat_template=source.chat_template,
        generation=source.generation,
        digest=weights.graph_digest(model, digests),
    )


def _check_head(model: ir.Model, vocab: int) -> None:
    """Refuse logits of another width than the table: a sampled token could have no row."""
    width = (dims(model.graph.outputs[0]) or (vocab,))[-1]
    if width != vocab:
        raise UnsupportedError(
            f"the model predicts {width} tokens and embeds {vocab}",
            where=f"output '{model.graph.outputs[0].name}'",
            limit="logits as wide as the token table has rows",
            remedy="cut or pad the head of the model to its vocabulary",
        )


def _vocabulary(model: ir.Model) -> int:
    for node in model.graph:
        if node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == Role.IDS.value:
            rows = (dims(node.inputs[0]) or (0,))[0]
            return int(rows)
    raise InputError("no table is looked up by input_ids", where="graph", limit="a language model embeds its tokens")
