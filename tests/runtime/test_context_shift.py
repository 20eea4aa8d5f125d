"""Context shift: what stays of a text, and that answers go on as if a fresh session had been fed just that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import UsageError
from bitwright.runtime.context_shift import SINKS, ContextShift
from bitwright.runtime.session import Session, load
from tests.runtime.toy import CONTEXT

PROMPT = [104, 105, 32, 7]
"""The toy model's greedy answer to it has no end-of-text token in the first three contexts, with 0, 4 or 11 kept."""


def by_hand(toy: Any, prompt: list[int], count: int, keep: int) -> tuple[list[int], list[int]]:
    """The greedy answer, and the tokens that the cache holds at its end."""
    held, answer = list(prompt), []
    while True:
        answer.append(int(toy.logits(held)[-1].argmax()))
        if len(answer) == count:
            return answer, held
        if len(held) == CONTEXT:
            rest = held[keep:]
            held = held[:keep] + rest[len(rest) - len(rest) // 2 :]
        held.append(answer[-1])


def conversation(turns: int) -> list[dict[str, str]]:
    """A system message of 5 letters, then messages of 6 in turns: each takes two special tokens more."""
    roles = ["user", "assistant"] * turns
    messages = [{"role": role, "content": f"{role[0]}{number:05d}"} for number, role in enumerate(roles)]
    return [{"role": "system", "content": "rules"}, *messages[: 2 * turns - 1]]


shifts = st.integers(1, 60).flatmap(
    lambda context: st.builds(ContextShift, st.just(context), st.integers(0, context // 2))
)


@given(shift=shifts, count=st.integers(1, 300))
def test_the_first_and_the_most_recent_tokens_stay(shift: ContextShift, count: int) -> None:
    kept = shift.kept(range(count))
    assert len(kept) <= shift.context
    assert len(kept) == count or len(kept) > shift.context - shift.step
    recent = len(kept) - min(shift.keep, count)
    assert kept == [*range(min(shift.keep, count)), *range(count - recent, count)]


@given(shift=shifts, count=st.integers(1, 200))
def test_what_stays_depends_on_the_length_alone(shift: ContextShift, count: int) -> None:
    held: list[int] = []
    for number in range(count):
        held = shift.kept([*held, number])
    assert held == shift.kept(range(count))


@pytest.mark.parametrize("keep", [-1, CONTEXT // 2 + 1, 2.5, True])
def test_refuses_to_keep_an_impossible_number(session: Session, keep: Any) -> None:
    with pytest.raises(UsageError, match="tokens at the beginning are to be kept") as caught:
        session.generate(ids=[1], context_shift=True, keep=keep)
    assert caught.value.limit == "0 to 24, half of the context"


def test_keeping_without_dropping_is_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="tokens are to be kept, but none are dropped"):
        session.generate(ids=[1], keep=4)


@pytest.mark.parametrize("keep", [0, SINKS, 11])
def test_an_answer_of_three_contexts_is_that_of_the_kept_tokens(
    session: Session, artifact_path: Path, toy: Any, keep: int
) -> None:
    expected, held = by_hand(toy, PROMPT, 3 * CONTEXT, keep)
    answer = session.generate(ids=PROMPT, max_tokens=3 * CONTEXT, context_shift=True, keep=keep)
    assert list(answer.ids) == expected
    assert answer.stats.stop_reason == "length"
    assert list(session.cache.tokens) == held
    assert answer.stats.dropped_tokens == len(PROMPT) + len(expected) - 1 - len(held)
    fresh = load(artifact_path, threads=1)
    fresh.prefill(held)
    np.testing.assert_array_equal(session.decode(7), fresh.decode(7))


def test_four_tokens_are_kept_by_default(session: Session) -> None:
    answers = [
        session.generate(ids=PROMPT, max_tokens=90, context_shift=True, keep=keep).ids for keep in (None, SINKS, 0)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_a_prompt_longer_than_the_context(session: Session, toy: Any) -> None:
    prompt = [(7 * number) % 250 for number in range(2 * CONTEXT)]
    answer = session.generate(ids=prompt, max_tokens=1, context_shift=True, keep=4)
    # 48 more than fit: 22 go at a time, three times.
    held = prompt[:4] + prompt[4 + 66 :]
    assert list(session.cache.tokens) == held
    assert answer.ids == (int(toy.logits(held)[-1].argmax()),)
    assert (answer.stats.prompt_tokens, answer.stats.dropped_tokens) == (96, 66)


def test_without_it_a_longer_prompt_is_refused_and_a_full_cache_ends_the_answer(session: Session) -> None:
    with pytest.raises(UsageError, match="the text has 49 tokens"):
        session.generate(ids=[1] * (CONTEXT + 1))
    answer = session.generate(ids=[1] * CONTEXT)
    assert (answer.stats.stop_reason, answer.stats.dropped_tokens) == ("context", 0)


def test_a_conversation_keeps_its_system_message_and_reuses_what_stays(session: Session, toy: Any) -> None:
    reused = []
    for turn in range(1, 9):
        messages = conversation(turn)
        answer = session.generate(messages=messages, max_tokens=1, context_shift=True)
        # <|system|>rules<eos><|user|> is 8 tokens.
        prompt = session.text.encode_messages(messages)
        held = ContextShift(CONTEXT, 8).kept(prompt)
        assert list(session.cache.tokens) == held
        assert answer.ids == (int(toy.logits(held)[-1].argmax()),)
        reused.append(answer.stats.reused_tokens)
    # Prompts of 16, 32, ... 128 tokens, of which 0, 0, 0, 20, 40, 60, 80 and 80 are dropped: where more are dropped
    # than a turn before only the first 8 are as they were, else all.
    assert reused == [0, 16, 32, 8, 8, 8, 8, 112 - 80]


def test_a_system_message_of_more_than_half_the_context_needs_a_number(session: Session) -> None:
    messages = [{"role": "system", "content": "x" * 30}, {"role": "user", "content": "hi"}]
    with pytest.raises(UsageError, match="33 tokens at the beginning are to be kept"):
        session.generate(messages=messages, context_shift=True)
    assert session.generate(messages=messages, max_tokens=9, context_shift=True, keep=4).ids


def test_a_saved_cache_holds_what_stayed(session: Session, artifact_path: Path, tmp_path: Path) -> None:
    first = session.generate(ids=PROMPT, max_tokens=2 * CONTEXT, context_shift=True)
    session.save_cache(tmp_path / "cache")
    text = [*PROMPT, *first.ids[:-1]]
    expected = session.generate(ids=text, max_tokens=CONTEXT, context_shift=True)
    later = load(artifact_path, threads=1)
    later.restore_cache(tmp_path / "cache")
    assert list(later.cache.tokens) == ContextShift(CONTEXT, SINKS).kept(text)
    answer = later.generate(ids=text, max_tokens=CONTEXT, context_shift=True)
    assert answer.ids == expected.ids
    assert answer.stats.reused_tokens == len(ContextShift(CONTEXT, SINKS).kept(text)) - 1
