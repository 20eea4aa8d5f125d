"""Which tokens of a text stay when it outgrows the context: the first few and the most recent ones.

The first tokens draw much of every head's attention, whatever they say, and without them models fail: attention sinks
(Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023). When one token more does not fit, the
older half of all others is dropped. What stays is read again from position 0 on, so that keys and values are those of
a text that has just these tokens; per token of an answer this costs about one token of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import UsageError

SINKS = 4
"""Tokens that are kept at least, unless the user says otherwise: more do not help (Xiao et al., table 2)."""


@dataclass(frozen=True)
class ContextShift:
    """The tokens of a text that a cache of ``context`` tokens holds.

    How many are dropped at a time is fixed, so what stays depends on the text's length alone: of a conversation and of
    the same conversation some messages later, mostly the same tokens stay, and the cache can be reused.

    Attributes:
        context: most tokens that may stay.
        keep: tokens at the beginning that always stay, at most half of the context.

    Raises:
        UsageError: ``keep`` is outside this range.
    """

    context: int
    keep: int

    def __post_init__(self) -> None:
        whole = isinstance(self.keep, int) and not isinstance(self.keep, bool)
        if not whole or not 0 <= self.keep <= self.context // 2:
            raise UsageError(
                f"{self.keep!r} tokens at the beginning are to be kept",
                where="keep",
                limit=f"0 to {self.context // 2}, half of the context",
                remedy="keep fewer, or compile the model with a larger --context",
            )

    @property
    def step(self) -> int:
        """Tokens that are dropped at a time."""
        return (self.context - self.keep + 1) // 2

    def kept(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that stay: all of them if they fit."""
        over = max(0, len(tokens) - self.context)
        dropped = -(-over // self.step) * self.step
        return [*tokens[: self.keep], *tokens[self.keep + dropped :]]
