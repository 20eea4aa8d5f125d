"""How likely a model finds a continuation: what every task of this package is decided by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bitwright.runtime.divergence import finite, log_softmax
from bitwright.runtime.rows import Floats

CHUNK = 64
"""Rows of logits held in float64 at once."""

Tokens = Sequence[int]


class RowsFrom(Protocol):
    """A model: the logits behind ``ids[first:]`` in pieces (``Session.rows``)."""

    def __call__(self, ids: Tokens, first: int) -> Iterable[Floats]: ...


@dataclass(frozen=True)
class Likelihood:
    """What a model thinks of a continuation.

    Attributes:
        logprob: sum of ln p over its tokens; 0 without tokens.
        greedy: whether each of its tokens is the most likely one.
        tokens: how many there are.
    """

    logprob: float
    greedy: bool
    tokens: int


Likelihoods = Callable[[Tokens, Sequence[Tokens]], list[Likelihood]]
"""Of continuations of one context, which has at least one token."""


def likelihoods_of(rows: RowsFrom) -> Likelihoods:
    """The likelihoods that a model's logits give."""

    def score(context: Tokens, continuations: Sequence[Tokens]) -> list[Likelihood]:
        if len(continuations) == 1:
            return [_follow(rows, context, continuations[0])]
        # The first tokens of all continuations are judged by the same row.
        shared = np.concatenate(list(rows(context, len(context) - 1)))
        found = []
        for tokens in continuations:
            first = _judge([shared], tokens[:1])
            rest = _follow(rows, [*context, *tokens[:1]], tokens[1:])
            found.append(
                Likelihood(first.logprob + rest.logprob, first.greedy and rest.greedy, first.tokens + rest.tokens)
            )
        return found

    return score


def _follow(rows: RowsFrom, context: Tokens, tokens: Tokens) -> Likelihood:
    if not tokens:
        return Likelihood(0.0, True, 0)
    return _judge(rows([*context, *tokens[:-1]], len(context) - 1), tokens)


def _judge(pieces: Iterable[Floats], tokens: Tokens) -> Likelihood:
    """``tokens`` by the rows that predict them."""
    logprob, greedy, done = 0.0, True, 0
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            targets = np.asarray(tokens[done : done + min(CHUNK, len(piece) - start)], np.int64)
            if not len(targets):
                break
            rows = piece[start : start + len(targets)]
            log_p = finite(log_softmax(rows), "model", f"token {done} of a continuation")
            logprob += float(np.take_along_axis(log_p, targets[:, None], -1).sum())
            greedy = greedy and bool((rows.argmax(-1) == targets).all())
            done += len(targets)
    return Likelihood(logprob, greedy, done)
