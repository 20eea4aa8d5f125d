"""From a prompt and options to an answer under way: what ``Session.generate`` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from bitwright.errors import UsageError
from bitwright.runtime.chat import Message
from bitwright.runtime.generation import Generation, Limits
from bitwright.runtime.sampling import Prediction
from bitwright.runtime.token_cache import need_context
from bitwright.runtime.token_ids import checked_ids, no_tokens

if TYPE_CHECKING:
    from bitwright.runtime.session import Session

DEFAULT_MAX_TOKENS = 256


class AnswerOptions(TypedDict, total=False):
    """Keyword arguments of ``Session.generate``, which explains them."""

    max_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]


def begin_answer(
    session: Session,
    prompt: str | None,
    messages: Sequence[Message] | None,
    ids: Sequence[int] | None,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
) -> Generation:
    """Check everything and return a generation that has computed nothing yet. Arguments as ``Session.generate``'s."""
    options = session.text.sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    limits = Limits(max_tokens, session.end_ids, (stop,) if isinstance(stop, str) else tuple(stop))
    tokens = _prompt_tokens(session, prompt, messages, ids)
    need_context(len(tokens), session.context)
    return Generation(
        tokens,
        feed=partial(_feed, session),
        decode=partial(_decode, session),
        decoder=session.tokenizer.stream(),
        options=options,
        limits=limits,
    )


def _prompt_tokens(
    session: Session, prompt: str | None, messages: Sequence[Message] | None, ids: Sequence[int] | None
) -> list[int]:
    if sum(source is not None for source in (prompt, messages, ids)) != 1:
        raise UsageError("nothing or too much to continue", remedy="pass one of prompt, messages and ids")
    if messages is not None:
        tokens = session.text.encode_messages(messages)
    elif prompt is not None:
        if not prompt:
            raise no_tokens()
        tokens = session.tokenizer.encode(prompt)
    else:
        tokens = list(ids or ())
    return checked_ids(tokens, session.vocab)


def _feed(session: Session, tokens: Sequence[int]) -> tuple[Prediction, int]:
    """Make the cache hold exactly ``tokens``; return what follows the last and how many were there already."""
    # At least the last token is fed again: its logits are needed.
    shared = session.cache.shared(tokens[:-1])
    session.rewind(shared)
    return Prediction(session.prefill(tokens[shared:])), shared


def _decode(session: Session, number: int) -> Prediction | None:
    if session.position >= session.context:
        return None
    return session.advance(number)
