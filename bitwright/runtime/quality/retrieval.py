"""Retrieval at length: does the model find a fact that stands far back in its context?

A document holds facts at several depths, each a key and a value. Each question asks for one key's value, and every
value of the document is a candidate. A candidate's score is its log-likelihood as the answer minus the mean of its
log-likelihoods as the answer of each of the document's questions: a value that the model likes whatever it is asked,
because it is a frequent word or stood last, gains nothing by that. Damage to the cache shows in the margin first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.runtime.divergence import Doubles
from bitwright.runtime.quality.documents import FACTS, make_document
from bitwright.runtime.quality.encode import Encoder, encode_pair
from bitwright.runtime.quality.likelihood import Likelihoods

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Retrieval:
    """A model's answers.

    Attributes:
        lengths: tokens of the documents.
        depths: where the facts stand, 0 to 1.
        logprobs: float64 [lengths, documents, questions, candidates]; question i's answer is candidate i.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    logprobs: Doubles

    @property
    def margins(self) -> Doubles:
        """Score of the right candidate minus that of the best other, nats [lengths, documents, questions]."""
        scores = self.logprobs - self.logprobs.mean(2, keepdims=True)
        right = np.eye(FACTS, dtype=bool)
        return scores[..., right] - np.where(right, -np.inf, scores).max(-1)  # type: ignore[no-any-return]

    def figures(self) -> dict[str, Any]:
        """Accuracy and mean margin in all, and of each length and depth."""
        margins = self.margins
        grid = [
            {"context": length, "depth": depth, **_summary(margins[i, :, j])}
            for i, length in enumerate(self.lengths)
            for j, depth in enumerate(self.depths)
        ]
        return {**_summary(margins), "grid": grid}

    def to_json(self, reference: Retrieval | None) -> dict[str, Any]:
        """``retrieval`` of ``bitwright eval --json``."""
        agreement = None if reference is None else float(((self.margins > 0) == (reference.margins > 0)).mean())
        return {
            "retrieval": {
                **self.figures(),
                "chance": 1 / FACTS,
                "documents": self.logprobs.shape[1],
                "reference": None if reference is None else reference.figures(),
                "agreement": agreement,
            }
        }


def _summary(margins: Doubles) -> dict[str, float]:
    return {"accuracy": float((margins > 0).mean()), "margin": float(margins.mean())}


def retrieve(
    likelihoods: Likelihoods,
    encoder: Encoder,
    lengths: Sequence[int],
    documents: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Retrieval:
    """Ask a model for the facts of ``documents`` documents of each of ``lengths`` tokens.

    Raises:
        UsageError: a length has no room for the facts.
    """
    made = [[make_document(encoder, length, (seed, index)) for index in range(documents)] for length in lengths]
    found: list[list[float]] = []
    for document in (document for row in made for document in row):
        for question in range(FACTS):
            pairs = [encode_pair(encoder, document.question(question), value) for value in document.values]
            # All answers begin where the first tokenizer's joint lies, which is after the question for all of them.
            context = min((context for context, _ in pairs), key=len)
            answers = [[*before[len(context) :], *answer] for before, answer in pairs]
            found.append([likelihood.logprob for likelihood in likelihoods(context, answers)])
        if progress is not None:
            progress(len(found) // FACTS, len(lengths) * documents)
    shape = (len(lengths), documents, FACTS, FACTS)
    return Retrieval(tuple(lengths), made[0][0].depths, np.array(found).reshape(shape))
