"""Texts of a task as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bitwright.errors import UnsupportedError, UsageError


class Encoder(Protocol):
    """The tokenizer of an artifact (``runtime.tokenizer.Tokenizer``)."""

    def encode(self, text: str, *, special: bool = True) -> list[int]: ...


def encode_pair(encoder: Encoder, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """``context + continuation`` as tokens, cut where the tokens of ``context`` end.

    Both are encoded together, for a tokenizer may join them; where it does, the cut lies before the joint.
    """
    whole, alone = encoder.encode(context + continuation), encoder.encode(context)
    cut = shared(whole, alone)
    return whole[:cut], whole[cut:]


def shared(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def first_token(config: Mapping[str, Any], where: str) -> int:
    """What a text begins with so that its first word is predicted too: ``bos_token_id``, else ``eos_token_id``.

    Raises:
        UnsupportedError: the generation config names neither.
    """
    for name in ("bos_token_id", "eos_token_id"):
        found = config.get(name)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    raise UnsupportedError(
        "the model names no token that a text begins with",
        where=where,
        limit="bos_token_id or eos_token_id in generation_config.json",
        remedy="add one to the model's generation_config.json and compile it again",
    )


def require_fit(tokens: int, context: int, where: str) -> None:
    """Refuse an item longer than the artifact's context.

    Raises:
        UsageError: it is.
    """
    if tokens > context:
        raise UsageError(
            f"the item has {tokens} tokens",
            where=where,
            limit=f"the context of this artifact is {context} tokens",
            remedy="remove the line, or compile the model with a larger --context",
        )
