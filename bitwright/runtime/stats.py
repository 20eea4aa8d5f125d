"""What one answer took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

StopReason = Literal["eos", "stop", "length", "context", "closed"]


@dataclass(frozen=True)
class GenerationStats:
    """Figures of one generation.

    Attributes:
        prompt_tokens: tokens of the prompt.
        reused_tokens: those of them that the cache held already.
        dropped_tokens: tokens of prompt and answer that a context shift dropped.
        new_tokens: tokens of the answer, the one that ended it included.
        first_token_seconds: from the call to the first token, prompt processing included.
        prefill_tokens_per_second: prompt tokens that were processed per second; None if there was nothing to time.
        decode_tokens_per_second: tokens after the first per second; None for answers of one token.
        stop_reason: ``eos`` (end-of-text token), ``stop`` (stop string), ``length`` (``max_tokens``), ``context`` (the
            cache is full) or ``closed`` (the caller stopped reading).
    """

    prompt_tokens: int
    reused_tokens: int
    dropped_tokens: int
    new_tokens: int
    first_token_seconds: float
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    stop_reason: StopReason

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
