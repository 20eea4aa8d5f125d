"""Documents for retrieval: a few facts among sentences that say nothing, made of words, for any tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitwright.errors import UsageError
from bitwright.runtime.quality.encode import Encoder

FACTS = 4
"""Facts in a document; there are as many questions, and as many candidates for each answer."""

_BEGINNING = "Remember these facts."
_FACT, _QUESTION, _ANSWER = "\nThe secret word of {key} is{value}.", "\nThe secret word of {key} is", " {value}"

_KEYS = (
    "Alice", "Bob", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Jack", "Kate", "Mary", "Oscar", "Paul",
    "Quinn", "Rose", "Sam", "Tina", "Victor", "Wendy", "Peter", "Laura", "Simon", "Anna", "George",
)  # fmt: skip
_VALUES = (
    "apple", "river", "stone", "cloud", "tiger", "house", "bread", "chair", "knife", "piano", "horse", "table",
    "glass", "paper", "train", "bridge", "window", "garden", "mountain", "forest", "candle", "bottle", "hammer",
    "mirror", "pillow", "rocket", "ticket", "wagon",
)  # fmt: skip
_SENTENCE = (
    ("The teacher", "A farmer", "The old sailor", "My neighbour", "The doctor", "A painter", "The baker", "A student"),
    ("walked to", "looked at", "talked about", "waited near", "thought of", "wrote about", "drove past", "sat beside"),
    ("the market", "the station", "a quiet lake", "the church", "the school", "the library", "the harbour", "a field"),
    ("in the morning", "after lunch", "before it rained", "last summer", "with a friend", "for a while", "at night"),
)


@dataclass(frozen=True)
class Document:
    """A text with facts at known depths.

    Attributes:
        text: everything before a question.
        keys: whom the facts are about, in the text's order.
        values: what they say, each with the space before it.
        depths: where each fact stands, as a share of the sentences around them.
    """

    text: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    depths: tuple[float, ...]

    def question(self, index: int) -> str:
        """The text up to where the answer ``values[index]`` is due."""
        return self.text + _QUESTION.format(key=self.keys[index])


def make_document(encoder: Encoder, length: int, seed: tuple[int, ...]) -> Document:
    """A document that is as long as possible, so that with any question and answer it has at most ``length`` tokens.

    Raises:
        UsageError: ``length`` has no room for the facts.
    """
    random = np.random.default_rng(seed)
    keys = tuple(str(key) for key in random.permutation(_KEYS)[:FACTS])
    values = tuple(_ANSWER.format(value=value) for value in random.permutation(_VALUES)[:FACTS])
    depths = tuple((2 * index + 1) / (2 * FACTS) for index in range(FACTS))
    # More than enough: no sentence is shorter than its number of words, seven.
    sentences = ["\n" + " ".join(str(random.choice(part)) for part in _SENTENCE) + "." for _ in range(length // 7)]

    def document(count: int) -> Document:
        return Document(_text(keys, values, depths, sentences[:count]), keys, values, depths)

    low, high = 0, len(sentences)
    if _tokens(encoder, document(0)) > length:
        raise UsageError(
            f"a document of {length} tokens",
            where="--ctx",
            limit=f"{_tokens(encoder, document(0))} tokens for the facts alone",
            remedy="use a larger --ctx",
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _tokens(encoder, document(middle)) <= length else (low, middle - 1)
    return document(low)


def _text(keys: tuple[str, ...], values: tuple[str, ...], depths: tuple[float, ...], sentences: list[str]) -> str:
    parts, done = [_BEGINNING], 0
    for key, value, depth in zip(keys, values, depths, strict=True):
        at = int(depth * len(sentences))
        parts += [*sentences[done:at], _FACT.format(key=key, value=value)]
        done = at
    return "".join([*parts, *sentences[done:]])


def _tokens(encoder: Encoder, document: Document) -> int:
    """Tokens of the longest question with its longest answer."""
    longest = max(document.values, key=lambda value: len(encoder.encode(value)))
    return max(len(encoder.encode(document.question(index) + longest)) for index in range(FACTS))
