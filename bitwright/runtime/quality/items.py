"""Items of a task from JSON Lines: one object per line, with the texts that the task asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bitwright.errors import InputError


@dataclass(frozen=True)
class LastWord:
    """A text whose last word is to be guessed (as in LAMBADA).

    Attributes:
        context: everything before the last word, without the space between.
        word: the last word, with the space before it.
        where: file and line, for errors.
    """

    context: str
    word: str
    where: str


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in what makes one of them right (as in BLiMP)."""

    good: str
    bad: str
    where: str


def last_words(content: str, where: str) -> list[LastWord]:
    """Items of ``{"text": "..."}`` lines; other keys are ignored.

    Raises:
        InputError: naming the line that is no such object, or whose text has no two words.
    """
    items = []
    for spot, (text,) in _lines(content, where, ("text",)):
        context, _, word = text.rstrip().rpartition(" ")
        if not context.strip():
            raise InputError(
                "the text has no word before its last",
                where=spot,
                limit="two words with a space between them",
                remedy="remove the line, or complete it",
            )
        items.append(LastWord(context.rstrip(), f" {word}", spot))
    return items


def minimal_pairs(content: str, where: str) -> list[MinimalPair]:
    """Items of ``{"sentence_good": "...", "sentence_bad": "..."}`` lines; other keys are ignored.

    Raises:
        InputError: naming the line that is no such object, or whose sentences are the same.
    """
    items = []
    for spot, (good, bad) in _lines(content, where, ("sentence_good", "sentence_bad")):
        if good == bad:
            raise InputError("both sentences are the same", where=spot, remedy="remove the line, or correct it")
        items.append(MinimalPair(good, bad, spot))
    return items


def _lines(content: str, where: str, keys: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Where each object stands, and its texts under ``keys``; empty lines are skipped."""
    limit = "{" + ", ".join(f'"{key}": "..."' for key in keys) + "} on each line"
    # Not splitlines: JSON text may hold U+2028 and the like.
    lines = [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError("the file holds no items", where=where, limit=limit, remedy="name a JSON Lines file")
    for number, line in lines:
        spot = f"{where}, line {number}"
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                "the line is not JSON", where=spot, limit=f"{limit}; {error}", remedy="name a JSON Lines file"
            ) from error
        texts = []
        for key in keys:
            text = found.get(key) if isinstance(found, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise InputError(
                    f"the line has no text under '{key}'", where=spot, limit=limit, remedy="correct the line"
                )
            texts.append(text)
        yield spot, texts
