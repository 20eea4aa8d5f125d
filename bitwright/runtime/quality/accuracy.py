"""Last-word and minimal-pair accuracy, of a model and of its float reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bitwright.runtime.quality.encode import Encoder, encode_pair, require_fit, shared
from bitwright.runtime.quality.items import LastWord, MinimalPair
from bitwright.runtime.quality.likelihood import Likelihoods

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Verdicts:
    """One model on a task.

    Attributes:
        right: of each item whether the model solved it.
        scores: of each item a number in nats: the task says of what.
    """

    right: tuple[bool, ...]
    scores: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return fmean(self.right)

    def agreement(self, other: Verdicts) -> float:
        """Share of items on which both are right or both are wrong."""
        return fmean(a == b for a, b in zip(self.right, other.right, strict=True))


def last_word_accuracy(
    likelihoods: Likelihoods,
    items: Sequence[LastWord],
    encoder: Encoder,
    context: int,
    progress: Progress | None = None,
) -> Verdicts:
    """Right: every token of the last word is the most likely one. Scores: ln p of the last word.

    Args:
        context: most tokens the model takes.

    Raises:
        UsageError: an item that is longer; it is named.
    """
    pairs = [encode_pair(encoder, item.context, item.word) for item in items]
    for item, (before, word) in zip(items, pairs, strict=True):
        require_fit(len(before) + len(word), context, item.where)
    right, scores = [], []
    for index, (before, word) in enumerate(pairs):
        found = likelihoods(before, [word])[0]
        right.append(found.greedy)
        scores.append(found.logprob)
        if progress is not None:
            progress(index + 1, len(pairs))
    return Verdicts(tuple(right), tuple(scores))


def minimal_pair_accuracy(
    likelihoods: Likelihoods,
    items: Sequence[MinimalPair],
    encoder: Encoder,
    first: int,
    context: int,
    progress: Progress | None = None,
) -> Verdicts:
    """Right: the good sentence is more likely than the bad one. Scores: ln p(good) - ln p(bad).

    Args:
        first: token that sentences begin with, unless the tokenizer puts it there itself.
        context: most tokens the model takes.

    Raises:
        UsageError: a sentence that is longer; its item is named.
    """
    pairs = [[_begun(encoder.encode(text), first) for text in (item.good, item.bad)] for item in items]
    for item, sentences in zip(items, pairs, strict=True):
        require_fit(max(len(sentence) for sentence in sentences), context, item.where)
    scores = []
    for index, (good, bad) in enumerate(pairs):
        # What both begin with is as likely in one as in the other.
        cut = shared(good, bad)
        a, b = likelihoods(good[:cut], [good[cut:], bad[cut:]])
        scores.append(a.logprob - b.logprob)
        if progress is not None:
            progress(index + 1, len(pairs))
    return Verdicts(tuple(score > 0 for score in scores), tuple(scores))


def _begun(tokens: list[int], first: int) -> list[int]:
    return tokens if tokens[:1] == [first] else [first, *tokens]


def last_word_json(model: Verdicts, reference: Verdicts | None) -> dict[str, Any]:
    """``last_word`` of ``bitwright eval --json``; loss is the mean of -ln p(word), in nats."""

    def figures(found: Verdicts) -> dict[str, Any]:
        return {"accuracy": found.accuracy, "loss": -fmean(found.scores)}

    return {"last_word": _compared(figures, model, reference)}


def minimal_pairs_json(model: Verdicts, reference: Verdicts | None) -> dict[str, Any]:
    """``minimal_pairs`` of ``bitwright eval --json``; margin is the mean of ln p(good) - ln p(bad), in nats."""

    def figures(found: Verdicts) -> dict[str, Any]:
        return {"accuracy": found.accuracy, "margin": fmean(found.scores)}

    return {"minimal_pairs": _compared(figures, model, reference)}


def _compared(
    figures: Callable[[Verdicts], dict[str, Any]], model: Verdicts, reference: Verdicts | None
) -> dict[str, Any]:
    return {
        **figures(model),
        "items": len(model.right),
        "reference": None if reference is None else figures(reference),
        "agreement": None if reference is None else model.agreement(reference),
    }
