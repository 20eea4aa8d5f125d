"""From a prompt and options to an answer under way: what ``Session.generate`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from bitwright.errors import UsageError
from bitwright.runtime.chat import Message
from bitwright.runtime.context_shift import SINKS, ContextShift
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
    context_shift: bool
    keep: int | None


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
    context_shift: bool = False,
    keep: int | None = None,
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
    shift = _shift(session, messages, context_shift, keep)
    if shift is None:
        need_context(len(tokens), session.context)
    feeder = SessionFeeder(session, shift)
    return Generation(tokens, feeder=feeder, decoder=session.tokenizer.stream(), options=options, limits=limits)


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


def _shift(session: Session, messages: Sequence[Message] | None, wanted: bool, keep: int | None) -> ContextShift | None:
    if not wanted:
        if keep is not None:
            raise UsageError(
                "tokens are to be kept, but none are dropped", where="keep", remedy="ask for a context shift as well"
            )
        return None
    if keep is None:
        opening = 0 if messages is None else session.text.opening_tokens(messages)
        keep = max(opening, min(SINKS, session.context // 2))
    return ContextShift(session.context, keep)


class SessionFeeder:
    """Feeds tokens to a session. ``shift``: what to do when the context is full; None: end the answer."""

    def __init__(self, session: Session, shift: ContextShift | None) -> None:
        self._session, self._shift = session, shift
        self.dropped = 0

    def feed(self, tokens: Sequence[int]) -> tuple[Prediction, int]:
        """Make the cache hold exactly what stays of ``tokens``.

        Returns:
            What follows the last of them, and how many were there already.
        """
        kept = self._kept(tokens)
        # At least the last token is fed again: its logits are needed.
        cache = self._session.cache
        cache.rewind(cache.shared(kept[:-1]))
        shared = len(cache)
        return Prediction(self._session.prefill(kept[shared:])), shared

    def decode(self, number: int) -> Prediction | None:
        """Append a token and return what follows it, or None where there is no room and nothing may be dropped."""
        session = self._session
        if session.position < session.context:
            return session.advance(number)
        if self._shift is None:
            return None
        kept = self._kept([*session.cache.tokens, number])
        session.reset()
        return Prediction(session.prefill(kept))

    def _kept(self, tokens: Sequence[int]) -> Sequence[int]:
        kept = tokens if self._shift is None else self._shift.kept(tokens)
        self.dropped += len(tokens) - len(kept)
        return kept
