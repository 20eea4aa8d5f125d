"""Documents of exact length, and retrieval scored against models whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from bitwright.errors import UsageError
from bitwright.runtime.quality.documents import FACTS, make_document
from bitwright.runtime.quality.likelihood import Likelihood, Tokens
from bitwright.runtime.quality.retrieval import Retrieval, retrieve
from tests.runtime.quality.scored import Words


@pytest.mark.parametrize("length", [60, 100, 777])
def test_documents_fill_their_length(length: int) -> None:
    encoder = Words()
    document = make_document(encoder, length, (0, 1))
    sizes = [len(encoder.encode(document.question(i) + document.values[i])) for i in range(FACTS)]
    longest_sentence = 12
    assert length - longest_sentence < max(sizes) <= length


def test_facts_stand_at_their_depths_and_each_once() -> None:
    document = make_document(Words(), 2000, (0, 1))
    assert document.depths == (0.125, 0.375, 0.625, 0.875)
    for key, value, depth in zip(document.keys, document.values, document.depths, strict=True):
        fact = f"The secret word of {key} is{value}."
        assert document.text.count(fact) == 1
        assert document.text.index(fact) / len(document.text) == pytest.approx(depth, abs=0.02)
    assert len({*document.keys, *document.values}) == 2 * FACTS


def test_documents_depend_on_the_seed_alone() -> None:
    one, same, other = (make_document(Words(), 300, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert one == same != other


def test_a_length_without_room_for_the_facts_is_refused() -> None:
    with pytest.raises(UsageError, match="a document of 20 tokens") as error:
        make_document(Words(), 20, (0, 0))
    assert error.value.limit == f"{3 + FACTS * 7 + 6 + 1} tokens for the facts alone"


class Knowing:
    """Likelihoods of a model that looks the fact up, plus a taste of its own for words and for the latest one."""

    def __init__(self, encoder: Words, knowledge: float) -> None:
        self.encoder, self.knowledge = encoder, knowledge

    def __call__(self, context: Tokens, continuations: Sequence[Tokens]) -> list[Likelihood]:
        words = {number: word for word, number in self.encoder.numbers.items()}
        text = " ".join(words[number] for number in context)
        key = text.rsplit("secret word of ", 1)[1].split(" ")[0]
        fact = text.split(f"secret word of {key} is ", 1)[1].split(" ")[0]
        found = []
        for (token,) in continuations:
            taste = token * 37 % 11 + text.index(words[token]) // 10  # whole numbers: they cancel exactly
            found.append(Likelihood(taste + self.knowledge * (words[token] == fact), False, 1))
        return found


class Spaced(Words):
    """Full stops are words, so that a fact's value is the same word as an answer."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return super().encode(text.replace(".", " ."), special=special)


def test_a_model_that_knows_is_right_whatever_its_taste() -> None:
    encoder = Spaced()
    found = retrieve(Knowing(encoder, 1.0), encoder, [100, 200], 3)
    figures = found.to_json(None)["retrieval"]
    # Its taste is the same whatever is asked, so what remains is what it knows.
    assert figures["accuracy"] == 1.0 and figures["margin"] == pytest.approx(1.0)
    assert (figures["chance"], figures["documents"]) == (0.25, 3)
    assert [(cell["context"], cell["depth"]) for cell in figures["grid"]][:5] == [
        (100, 0.125), (100, 0.375), (100, 0.625), (100, 0.875), (200, 0.125),
    ]  # fmt: skip


def test_a_model_that_knows_nothing_is_never_counted_right() -> None:
    encoder = Spaced()
    figures = retrieve(Knowing(encoder, 0.0), encoder, [100], 3).to_json(None)["retrieval"]
    assert figures["accuracy"] == 0.0 and figures["margin"] == pytest.approx(0.0, abs=1e-12)


def test_figures_of_the_grid_are_means_of_its_questions() -> None:
    random = np.random.default_rng(0)
    model, reference = (
        Retrieval((8, 16), (0.1, 0.2, 0.3, 0.4), random.standard_normal((2, 5, FACTS, FACTS))) for _ in range(2)
    )
    figures = model.to_json(reference)["retrieval"]
    for cell in figures["grid"]:
        row, column = (8, 16).index(cell["context"]), model.depths.index(cell["depth"])
        margins = []
        for document in model.logprobs[row]:
            scores = [document[column, c] - np.mean(document[:, c]) for c in range(FACTS)]
            margins.append(scores[column] - max(s for c, s in enumerate(scores) if c != column))
        assert cell["margin"] == pytest.approx(np.mean(margins), rel=1e-12)
        assert cell["accuracy"] == np.mean(np.array(margins) > 0)
    assert figures["agreement"] == np.mean((model.margins > 0) == (reference.margins > 0))
    assert figures["reference"] == reference.figures()


def test_progress_counts_documents() -> None:
    encoder, seen = Spaced(), []
    retrieve(Knowing(encoder, 1.0), encoder, [100, 120], 2, progress=lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
