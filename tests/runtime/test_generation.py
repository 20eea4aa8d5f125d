"""Generation on the toy model: the oracle's greedy tokens, stop conditions, reuse of the cache, figures."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bitwright.errors import NumericalError, UnsupportedError, UsageError
from bitwright.runtime.generation import Completion, Generation, Limits
from bitwright.runtime.sampling import Prediction, SamplingOptions
from bitwright.runtime.session import Session
from tests.runtime.toy import CONTEXT

PROMPT = "Once upon a time"


def prompt_ids(session: Session) -> list[int]:
    return session.tokenizer.encode(PROMPT)


def test_greedy_tokens_are_the_oracles(session: Session, toy: Any) -> None:
    expected = toy.greedy(prompt_ids(session), 12)
    if 256 in expected:
        expected = expected[: expected.index(256) + 1]
    answer = session.generate(PROMPT, max_tokens=12)
    assert list(answer.ids) == expected
    assert answer == session.tokenizer.decode(expected)


def test_a_stream_is_the_whole_answer_in_pieces(session: Session) -> None:
    whole = session.generate(PROMPT, max_tokens=20)
    stream = session.generate(PROMPT, max_tokens=20, stream=True)
    assert isinstance(whole, Completion)
    assert isinstance(stream, Generation)
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == whole
    assert tuple(stream.ids) == whole.ids


def test_ids_and_prompt_mean_the_same(session: Session) -> None:
    assert session.generate(ids=prompt_ids(session), max_tokens=5) == session.generate(PROMPT, max_tokens=5)


def test_equal_seeds_give_equal_answers_and_others_do_not(session: Session) -> None:
    def answer(seed: int) -> tuple[int, ...]:
        return session.generate(PROMPT, max_tokens=16, temperature=30.0, seed=seed).ids

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_messages_go_through_the_chat_template(session: Session) -> None:
    ids = session.tokenizer.encode("<|user|>hi<eos><|assistant|>", special=False)
    assert ids[0] == 257 and ids[-2:] == [256, 258]  # the special tokens are not spelled out
    answer = session.generate(messages=[{"role": "user", "content": "hi"}], max_tokens=4)
    assert answer.ids == session.generate(ids=ids, max_tokens=4).ids


def test_a_later_turn_reuses_the_tokens_in_the_cache(session: Session, toy: Any) -> None:
    ids = prompt_ids(session)
    first = session.generate(ids=ids, max_tokens=5)
    assert first.stats.reused_tokens == 0
    longer = [*ids, *first.ids, 3, 4]
    second = session.generate(ids=longer, max_tokens=5)
    # The last token of the first answer was sampled but not fed.
    assert second.stats.reused_tokens == len(ids) + len(first.ids) - 1
    assert list(second.ids) == toy.greedy(longer, 5)[: len(second.ids)]


def test_another_prompt_keeps_only_the_common_beginning(session: Session, toy: Any) -> None:
    session.generate(ids=[5, 6, 7, 8, 9], max_tokens=3)
    answer = session.generate(ids=[5, 6, 1, 8, 9], max_tokens=3)
    assert answer.stats.reused_tokens == 2
    assert list(answer.ids) == toy.greedy([5, 6, 1, 8, 9], 3)[: len(answer.ids)]


def test_the_same_prompt_again_feeds_its_last_token(session: Session) -> None:
    session.generate(ids=[5, 6, 7], max_tokens=3)
    assert session.generate(ids=[5, 6, 7], max_tokens=3).stats.reused_tokens == 2


def test_length_stops(session: Session) -> None:
    answer = session.generate(PROMPT, max_tokens=3)
    assert (answer.stats.stop_reason, answer.stats.new_tokens) == ("length", 3)


def test_the_context_stops(session: Session) -> None:
    # After a prompt that fills the cache there is room to sample one token and none to feed it.
    full = session.generate(ids=[1] * CONTEXT, max_tokens=10)
    assert (full.stats.stop_reason, full.stats.new_tokens) == ("context", 1)
    session.reset()
    some = session.generate(ids=[1] * (CONTEXT - 3), max_tokens=10)
    assert (some.stats.stop_reason, some.stats.new_tokens) == ("context", 4)


def scripted(ids: Sequence[int], session: Session, **limits: Any) -> Generation:
    """A generation whose model says exactly ``ids``."""
    script = iter(ids)

    def logits() -> np.ndarray:
        row = np.zeros(260, dtype=np.float32)
        row[next(script)] = 1.0
        return row

    feeder = SimpleNamespace(
        dropped=0,
        feed=lambda tokens: (Prediction(logits()), 0),
        decode=lambda number: Prediction(logits()),
    )
    options = {"max_tokens": 100, "end_ids": frozenset({256}), **limits}
    return Generation(
        [1, 2, 3],
        feeder=feeder,
        decoder=session.tokenizer.stream(),
        options=SamplingOptions(),
        limits=Limits(**options),
    )


def test_the_end_token_stops_and_is_not_shown(session: Session) -> None:
    ids = [*session.tokenizer.encode("bye"), 256, *session.tokenizer.encode("more")]
    generation = scripted(ids, session)
    assert "".join(generation) == "bye"
    assert generation.stats.stop_reason == "eos"
    assert generation.stats.new_tokens == 4


def test_a_stop_string_is_cut_even_inside_a_piece(session: Session) -> None:
    generation = scripted(session.tokenizer.encode("one\n\ntwo"), session, stops=("\n\n",))
    assert list(generation) == ["o", "n", "e"]
    assert generation.stats.stop_reason == "stop"


def test_characters_of_several_tokens_come_whole(session: Session) -> None:
    ids = session.tokenizer.encode("aé€😀")
    assert len(ids) == 10  # one per byte
    assert list(scripted([*ids, 256], session)) == ["a", "é", "€", "😀"]


def test_half_a_character_at_the_end_is_a_replacement_character(session: Session) -> None:
    ids = session.tokenizer.encode("a😀")[:-1]
    assert "".join(scripted(ids, session, max_tokens=len(ids))) == "a\ufffd"


def test_not_finite_logits_are_an_error(session: Session) -> None:
    generation = scripted([1], session)
    generation._feeder.feed = lambda tokens: (Prediction(np.full(260, np.nan, dtype=np.float32)), 0)
    with pytest.raises(NumericalError, match="not finite"):
        next(generation)


def test_closing_leaves_the_session_usable(session: Session, toy: Any) -> None:
    stream = session.generate(PROMPT, max_tokens=30, stream=True)
    next(stream)
    stream.close()
    assert stream.stats.stop_reason == "closed"
    np.testing.assert_array_equal(session.logits([1, 2]), toy.logits([1, 2]))


def test_figures(session: Session) -> None:
    stats = session.generate(PROMPT, max_tokens=6).stats
    assert stats.prompt_tokens == len(prompt_ids(session))
    assert stats.new_tokens == 6
    assert 0 < stats.first_token_seconds < 10
    assert stats.decode_tokens_per_second is not None and stats.decode_tokens_per_second > 0
    assert session.generate("x", max_tokens=1).stats.decode_tokens_per_second is None
    assert set(stats.to_dict()) == set(stats.__dataclass_fields__)


def test_figures_of_an_unfinished_answer_are_an_error(session: Session) -> None:
    with pytest.raises(UsageError, match="the answer has not ended"):
        _ = session.generate(PROMPT, stream=True).stats


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({}, "nothing or too much to continue"),
        ({"prompt": "a", "ids": [1]}, "nothing or too much to continue"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"ids": []}, "the prompt is empty"),
        ({"messages": []}, "there are no messages"),
        ({"messages": [{"role": "user"}]}, "a message lacks its role or content"),
        ({"prompt": "x" * (CONTEXT + 1)}, "the text has 49 tokens"),
        ({"prompt": "\ud800"}, "the text is not valid Unicode"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "a", "max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"prompt": "a", "stop": [""]}, "'' is no stop string"),
        ({"prompt": "a", "stop": [3]}, "3 is no stop string"),
        ({"prompt": "a", "temperature": -1.0}, "temperature is -1.0"),
        ({"prompt": "a", "top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_refuses_bad_arguments_before_computing(session: Session, arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        session.generate(stream=True, **arguments)
    assert caught.value.what == what
    assert session.position == 0


def test_what_an_artifact_lacks_is_named(tmp_path: Any, toy: Any, executable: Any) -> None:
    from tests.runtime import toy as toy_model

    bare = toy_model.write(tmp_path / "bare", toy, executable).load(threads=1)
    with pytest.raises(UnsupportedError, match=r"the artifact has no tokenizer\.json"):
        bare.generate("text")
    with pytest.raises(UnsupportedError, match=r"the artifact has no chat_template\.jinja"):
        bare.generate(messages=[{"role": "user", "content": "hi"}])
