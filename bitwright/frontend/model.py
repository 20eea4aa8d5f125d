"""What the frontend hands over: one canonical graph and all that belongs to the model around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bitwright.program import CacheShape as CacheShape

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class ImportedModel:
    """A model in canonical form.

    Attributes:
        graph: canonical ONNX (see ``canonical.py``), batch 1, float32 weights.
        kind: ``decoder`` (causal, with a cache) or ``encoder``.
        name: a name for people.
        context: how many positions the model and its tables have.
        vocab: rows of the token embedding.
        layers: one entry per cached attention, in graph order; empty for an encoder.
        tokenizer_json: a ``tokenizers`` file, or None where the source has none.
        chat_template: a jinja2 template, or None.
        generation: ``bos_token_id``, ``eos_token_id`` (a list) and sampling defaults, as far as the source states them.
        digest: sha256 of the graph and its weights; independent of names.
    """

    graph: ir.Model
    kind: Literal["decoder", "encoder"]
    name: str
    context: int
    vocab: int
    layers: tuple[CacheShape, ...]
    tokenizer_json: bytes | None
    chat_template: str | None
    digest: str
    generation: dict[str, Any] = field(default_factory=dict)
