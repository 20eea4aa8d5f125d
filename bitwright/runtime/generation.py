"""One answer: the loop from prompt ids to text, as an iterator of pieces."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from bitwright.errors import UsageError
from bitwright.runtime.sampling import Prediction, Sampler, SamplingOptions
from bitwright.runtime.stats import GenerationStats, StopReason
from bitwright.runtime.stop import StopStrings


class PieceDecoder(Protocol):
    """Turns token ids into text, one at a time (``tokenizer.Detokenizer``)."""

    def push(self, number: int) -> str: ...

    def finish(self) -> str: ...


class Feeder(Protocol):
    """Feeds an answer's tokens to the model."""

    @property
    def dropped(self) -> int:
        """Tokens of the text so far that the context had no room for."""

    def feed(self, tokens: Sequence[int]) -> tuple[Prediction, int]:
        """Make the cache hold the prompt; return the prediction behind it and how many tokens were there already."""

    def decode(self, number: int) -> Prediction | None:
        """Append one token and return the prediction behind it, or None when the cache is full."""


@dataclass(frozen=True)
class Limits:
    """When an answer ends: after ``max_tokens``, at an id of ``end_ids`` or at a stop string."""

    max_tokens: int
    end_ids: frozenset[int]
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise UsageError(
                f"max_tokens is {self.max_tokens!r}",
                where="max_tokens",
                limit="a whole number, at least 1",
                remedy="leave it out for the default",
            )
        StopStrings(self.stops)


class Generation(Iterator[str]):
    """An answer under way: iterate over its pieces of text, then read ``stats``.

    Pieces are never empty and never split a UTF-8 character. Nothing is computed before the first ``next``. Closing it,
    or an exception such as KeyboardInterrupt, leaves the session usable.
    """

    def __init__(
        self,
        ids: Sequence[int],
        *,
        feeder: Feeder,
        decoder: PieceDecoder,
        options: SamplingOptions,
        limits: Limits,
    ) -> None:
        self.prompt_ids = tuple(ids)
        self.ids: list[int] = []
        """Tokens of the answer so far, the one that ended it included."""
        self._feeder, self._decoder = feeder, decoder
        self._sampler, self._limits, self._stops = Sampler(options), limits, StopStrings(limits.stops)
        self._reason: StopReason | None = None
        self._reused = self._computed = 0
        self._started = self._fed = self._first = self._last = 0.0
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer now."""
        self._pieces.close()
        self._reason = self._reason or "closed"

    @property
    def stats(self) -> GenerationStats:
        """Figures of the finished answer.

        Raises:
            UsageError: it has not ended: read all pieces or call ``close`` first.
        """
        if self._reason is None:
            raise UsageError("the answer has not ended", remedy="read all pieces, or close the generation, first")
        seconds = self._fed - self._started
        decoding = self._last - self._first
        return GenerationStats(
            prompt_tokens=len(self.prompt_ids),
            reused_tokens=self._reused,
            dropped_tokens=self._feeder.dropped,
            new_tokens=len(self.ids),
            first_token_seconds=max(0.0, self._first - self._started),
            prefill_tokens_per_second=self._computed / seconds if seconds > 0 else None,
            decode_tokens_per_second=(len(self.ids) - 1) / decoding if decoding > 0 else None,
            stop_reason=self._reason,
        )

    def _run(self) -> Generator[str, None, None]:
        for number in self._tokens():
            if piece := self._stops.push(self._decoder.push(number)):
                yield piece
            if self._stops.hit is not None:
                self._reason = "stop"
                return
        rest = self._stops.push(self._decoder.finish())
        # The last bytes may complete a stop string, which then is why the answer ends.
        if self._stops.hit is not None:
            self._reason = "stop"
        if rest := rest + self._stops.finish():
            yield rest

    def _tokens(self) -> Iterator[int]:
        """Sample tokens until a limit; the token that ends the text is not yielded."""
        self._started = time.perf_counter()
        prediction, self._reused = self._feeder.feed(self.prompt_ids)
        self._computed = len(self.prompt_ids) - self._feeder.dropped - self._reused
        self._fed = time.perf_counter()
        while True:
            number = self._sampler.choose(prediction, chain(self.prompt_ids, self.ids))
            self.ids.append(number)
            self._last = time.perf_counter()
            if len(self.ids) == 1:
                self._first = self._last
            if number in self._limits.end_ids:
                self._reason = "eos"
                return
            yield number
            if len(self.ids) >= self._limits.max_tokens:
                self._reason = "length"
                return
            following = self._feeder.decode(number)
            if following is None:
                self._reason = "context"
                return
            prediction = following


class Completion(str):
    """The text of a finished answer, with the token ids and figures it came with."""

    ids: tuple[int, ...]
    stats: GenerationStats

    @classmethod
    def of(cls, generation: Generation) -> Completion:
        """Read a generation to its end."""
        completion = cls("".join(generation))
        completion.ids, completion.stats = tuple(generation.ids), generation.stats
        return completion
