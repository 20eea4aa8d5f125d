"""Last words and minimal pairs: what files may hold, and verdicts against the definition."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.runtime.quality.accuracy import (
    Verdicts,
    last_word_accuracy,
    last_word_json,
    minimal_pair_accuracy,
    minimal_pairs_json,
)
from bitwright.runtime.quality.encode import encode_pair, first_token
from bitwright.runtime.quality.items import LastWord, MinimalPair, last_words, minimal_pairs
from bitwright.runtime.quality.likelihood import likelihoods_of
from tests.runtime.quality.scored import Model, Words


def lines(*objects: Any) -> str:
    return "".join(json.dumps(found) + "\n" for found in objects)


def test_last_words_are_split_at_the_last_space() -> None:
    content = lines({"text": "a b  c "}, {"text": "x y", "id": 3}) + "\n"
    assert last_words(content, "f") == [LastWord("a b", " c", "f, line 1"), LastWord("x", " y", "f, line 2")]


def test_minimal_pairs_are_read_in_order() -> None:
    content = "\n" + lines({"sentence_good": "a b", "sentence_bad": "a c", "field": "syntax"})
    assert minimal_pairs(content, "f") == [MinimalPair("a b", "a c", "f, line 2")]


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        ("", "the file holds no items", "f"),
        ("\n \n", "the file holds no items", "f"),
        ('{"text": "a b"}\n{"text": ', "the line is not JSON", "f, line 2"),
        ('["a b"]', "the line has no text under 'text'", "f, line 1"),
        ('{"texts": "a b"}', "the line has no text under 'text'", "f, line 1"),
        ('{"text": 3}', "the line has no text under 'text'", "f, line 1"),
        ('{"text": "  "}', "the line has no text under 'text'", "f, line 1"),
        ('{"text": "alone"}', "the text has no word before its last", "f, line 1"),
        ('{"text": " alone"}', "the text has no word before its last", "f, line 1"),
        ("[" * 100_000, "the line is not JSON", "f, line 1"),
    ],
)
def test_a_file_of_last_words_is_refused_by_line(content: str, what: str, where: str) -> None:
    with pytest.raises(InputError) as error:
        last_words(content, "f")
    assert (error.value.what, error.value.where) == (what, where)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"sentence_good": "a"}', "the line has no text under 'sentence_bad'"),
        ('{"sentence_good": "a", "sentence_bad": "a"}', "both sentences are the same"),
    ],
)
def test_a_file_of_pairs_is_refused_by_line(content: str, what: str) -> None:
    with pytest.raises(InputError) as error:
        minimal_pairs(content, "f")
    assert (error.value.what, error.value.where) == (what, "f, line 1")
    assert error.value.remedy


def test_a_pair_is_cut_where_the_context_ends_even_if_tokens_join() -> None:
    class Joining(Words):
        """Joins "new" and "york"."""

        def encode(self, text: str, *, special: bool = True) -> list[int]:
            return super().encode(text.replace("new york", "new_york"), special=special)

    encoder = Joining()
    whole = encoder.encode("to new york now")
    assert encode_pair(encoder, "to new", " york now") == (whole[:1], whole[1:])
    assert encode_pair(encoder, "to new york", " now") == (whole[:2], whole[2:])


def test_last_word_verdicts_equal_the_definition() -> None:
    model, encoder = Model(5), Words(begins=True)
    texts = [f"{a} {b} {c}" for a in "abc" for b in "de" for c in "fgh"]
    items = last_words(lines(*({"text": text} for text in texts)), "f")
    encoder.encode(" ".join("abcdefgh"))
    # The third item's word is made the model's own choice, so that something is right.
    names = {number: word for word, number in encoder.numbers.items()}
    chosen = next(
        (item, names[word]) for item in items if (word := model.greedy(encoder.encode(item.context), 1)[0]) in names
    )
    items.append(LastWord(chosen[0].context, f" {chosen[1]}", "f, line 19"))
    found = last_word_accuracy(likelihoods_of(model), items, encoder, 100)
    for item, right, score in zip(items, found.right, found.scores, strict=True):
        context, word = encoder.encode(item.context), encoder.encode(item.word, special=False)
        assert score == pytest.approx(model.logprob(context, word), rel=1e-12)
        assert right == (model.greedy(context, 1) == word)
    assert found.right[-1]
    figures = last_word_json(found, None)["last_word"]
    assert figures["accuracy"] == np.mean(found.right) and figures["items"] == 19
    assert figures["loss"] == pytest.approx(-np.mean(found.scores), rel=1e-12)


@pytest.mark.parametrize("begins", [False, True])
def test_minimal_pair_verdicts_equal_the_definition(begins: bool) -> None:
    model, encoder = Model(5), Words(begins=begins)
    items = [MinimalPair(f"{a} {b} {c}", f"{a} {d}", "") for a in "abc" for b in "de" for c in "fg" for d in "hi"]
    items += [MinimalPair("a b", "a b c", ""), MinimalPair("x b", "y b", "")]
    found = minimal_pair_accuracy(likelihoods_of(model), items, encoder, 1, 100)
    for item, right, score in zip(items, found.right, found.scores, strict=True):
        good, bad = (model.logprob([1], encoder.encode(text, special=False)) for text in (item.good, item.bad))
        assert score == pytest.approx(good - bad, rel=1e-9)
        assert right == (good > bad)
    assert 0 < np.mean(found.right) < 1
    assert minimal_pairs_json(found, None)["minimal_pairs"]["margin"] == pytest.approx(np.mean(found.scores))


def test_agreement_counts_items_judged_alike() -> None:
    model, reference = Verdicts((True, False, True, False), (0.0,) * 4), Verdicts((True, True, True, False), (1.0,) * 4)
    for figures in (
        last_word_json(model, reference)["last_word"],
        minimal_pairs_json(model, reference)["minimal_pairs"],
    ):
        assert figures["agreement"] == 0.75
        assert (figures["accuracy"], figures["reference"]["accuracy"]) == (0.5, 0.75)


def test_progress_counts_items() -> None:
    seen: list[tuple[int, int]] = []
    items = [LastWord("a b", " c", "f, line 1"), LastWord("a", " c", "f, line 2")]
    last_word_accuracy(likelihoods_of(Model()), items, Words(), 100, lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]


def test_items_longer_than_the_context_are_refused_before_anything_is_scored() -> None:
    model = Model()
    with pytest.raises(UsageError, match="the item has 5 tokens") as error:
        last_word_accuracy(
            likelihoods_of(model),
            [LastWord("a", " b", "f, line 1"), LastWord("a b c d", " e", "f, line 2")],
            Words(),
            4,
        )
    assert error.value.where == "f, line 2" and model.fed == 0
    with pytest.raises(UsageError, match="the item has 4 tokens"):
        minimal_pair_accuracy(likelihoods_of(model), [MinimalPair("a", "a b c", "f, line 1")], Words(), 1, 3)


def test_a_text_begins_with_what_the_model_says() -> None:
    assert first_token({"bos_token_id": 1, "eos_token_id": 2}, "") == 1
    assert first_token({"bos_token_id": None, "eos_token_id": [7, 8]}, "") == 7
    with pytest.raises(UnsupportedError, match="the model names no token that a text begins with"):
        first_token({}, "out")
