"""Ctrl-C during an answer keeps what was said and the conversation goes on."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bitwright.cli.chat import Conversation


class Answer:
    """A generation that is interrupted after two pieces."""

    stats = None

    def __init__(self) -> None:
        self.closed = False

    def __iter__(self) -> Iterator[str]:
        yield "one "
        yield "two"
        raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


def conversation(asked: list[Any], *, interactive: bool) -> Conversation:
    def generate(messages: list[dict[str, str]], **options: Any) -> Answer:
        asked.append([dict(message) for message in messages])
        return Answer()

    session: Any = SimpleNamespace(generate=generate)
    return Conversation(session, None, {}, interactive=interactive)


def test_an_interrupted_answer_stays_in_the_conversation(monkeypatch: Any, capsys: Any) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("bitwright.cli.chat.describe", lambda stats: "[figures]")
    talk = conversation(asked, interactive=True)
    talk._answer("hello")
    talk._answer("more")
    assert asked[1] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "one two"},
        {"role": "user", "content": "more"},
    ]
    assert capsys.readouterr().out == "one two\none two\n"


def test_without_a_terminal_an_interrupt_ends_the_program() -> None:
    with pytest.raises(KeyboardInterrupt):
        conversation([], interactive=False)._answer("hello")
