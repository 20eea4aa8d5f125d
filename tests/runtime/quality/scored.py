"""Models small enough to score by hand: logits that depend on the last tokens only, and a tokenizer of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

VOCAB = 50


class Model:
    """Rows drawn from the last two tokens; ``fed`` counts the tokens computed."""

    def __init__(self, seed: int = 0, piece: int = 1000) -> None:
        self.seed, self.piece, self.fed = seed, piece, 0

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        rows = [np.random.default_rng([self.seed, *ids[max(0, i - 1) : i + 1]]) for i in range(len(ids))]
        return np.array([2 * row.standard_normal(VOCAB) for row in rows])

    def __call__(self, ids: Sequence[int], first: int) -> Iterator[np.ndarray]:
        self.fed += len(ids) - first
        rows = self.logits(ids)[first:]
        yield from (rows[start : start + self.piece] for start in range(0, len(rows), self.piece))

    def logprob(self, context: Sequence[int], tokens: Sequence[int]) -> float:
        """By the definition: sum of ln p(token | everything before it)."""
        total, ids = 0.0, list(context)
        for token in tokens:
            row = self.logits(ids)[-1]
            total += float(row[token] - np.log(np.exp(row).sum()))
            ids.append(token)
        return total

    def greedy(self, context: Sequence[int], count: int) -> list[int]:
        ids = list(context)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[-count:]


class Words:
    """A token per word, numbered as they come, with the space before it; 1 begins a text if ``begins``."""

    def __init__(self, *, begins: bool = False) -> None:
        self.numbers: dict[str, int] = {}
        self.begins = begins

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        words = text.replace("\n", " \n").split(" ")
        ids = [self.numbers.setdefault(word, len(self.numbers) + 2) for word in words if word]
        return [1, *ids] if self.begins and special else ids
