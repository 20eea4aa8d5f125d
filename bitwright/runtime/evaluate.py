"""Quality of a model on text: windowed perplexity, and divergence from a reference model. NumPy only.

Protocol: the text's tokens are cut into non-overlapping windows of ``context`` tokens, without BOS; each window
starts from an empty cache. Position i of a window is predicted by the logits of position i - 1, so positions 1 ...
context - 1 are scored; the *second half* are positions context / 2 ... context - 1, whose predictions have seen at
least half a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InputError, InternalError, NumericalError, UsageError

MIN_CONTEXT = 4
CHUNK = 64
"""Rows of logits held in float64 at once."""

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Logits = Callable[[Ids], Floats]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from the reference's, over the second half of every window.

    Attributes:
        mean: mean of KL(reference || model) in nats per token.
        p99: its 99th percentile over tokens (linear interpolation).
        top1: share of tokens whose most likely continuation is the same.
    """

    mean: float
    p99: float
    top1: float


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        perplexity: exp of the mean negative log-likelihood over positions 1 ... context - 1.
        perplexity_second_half: the same over positions context / 2 ... context - 1.
        divergence: None without a reference.
        windows: number of windows scored.
        context: tokens of a window.
    """

    perplexity: float
    perplexity_second_half: float
    divergence: Divergence | None
    windows: int
    context: int

    def to_json(self) -> dict[str, Any]:
        """The keys of ``bitwright eval --json``, but ``bytes``, which the artifact knows."""
        found = self.divergence
        return {
            "perplexity": self.perplexity,
            "perplexity_second_half": self.perplexity_second_half,
            "kl": {"mean": found.mean, "p99": found.p99} if found else None,
            "top1": found.top1 if found else None,
            "windows": self.windows,
            "context": self.context,
        }


def second_half(context: int) -> slice:
    """The rows of a window's logits that predict its positions context / 2 ... context - 1."""
    return slice(context // 2 - 1, context - 1)


def windows_of(tokens: npt.ArrayLike, context: int, max_windows: int | None = None) -> Ids:
    """The first ``max_windows`` (default: all) whole windows of ``tokens``, int64 [windows, context].

    Raises:
        UsageError: a window too small or odd, no window asked for.
        InputError: fewer tokens than one window.
    """
    if context < MIN_CONTEXT or context % 2:
        raise UsageError(
            f"windows of {context} tokens cannot be scored",
            limit=f"an even number, at least {MIN_CONTEXT}",
            remedy="use --ctx 512",
        )
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"{max_windows} windows were asked for", limit="at least 1", remedy="leave the limit out")
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise InternalError(f"tokens are {ids.dtype} of shape {ids.shape}, not one sequence of integers")
    count = len(ids) // context
    if not count:
        raise InputError(
            f"the text has {len(ids)} tokens, too few for one window",
            limit=f"{context} tokens a window",
            remedy=f"give a longer text, or a smaller --ctx (at least {MIN_CONTEXT})",
        )
    count = count if max_windows is None else min(count, max_windows)
    return ids[: count * context].astype(np.int64).reshape(count, context)


def evaluate(
    session_logits: Logits,
    tokens: npt.ArrayLike,
    *,
    context: int = 512,
    reference: Logits | None = None,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model on ``tokens``, and against ``reference`` if there is one.

    Args:
        session_logits: int64 [context] -> logits [context, vocab] of a window after an empty cache.
        tokens: the whole text, int [n].
        context: tokens of a window.
        reference: the same of the reference model; it may also give only the rows ``second_half(context)``, and
            log-probabilities in place of logits (softmax does not see the difference).
        max_windows: stop after so many windows.
        progress: called with (windows done, windows in all) after each.

    Raises:
        UsageError, InputError: see ``windows_of``.
        NumericalError: logits that are not numbers.
    """
    windows = windows_of(tokens, context, max_windows)
    half = second_half(context)
    losses, kl, agreed = [], [], []
    for index, window in enumerate(windows):
        logits = _checked(session_logits(window), "model", index, context)
        losses.append(_losses(logits[:-1], window[1:], index))
        if reference is not None:
            expected = _checked(reference(window), "reference", index, context, context // 2)
            expected = expected if len(expected) == context // 2 else expected[half]
            kl.append(_divergence(expected, logits[half], index))
            agreed.append(expected.argmax(-1) == logits[half].argmax(-1))
        if progress is not None:
            progress(index + 1, len(windows))
    loss = np.stack(losses)
    return Evaluation(
        perplexity=float(np.exp(loss.mean())),
        perplexity_second_half=float(np.exp(loss[:, half].mean())),
        divergence=_summary(np.concatenate(kl), np.concatenate(agreed)) if kl else None,
        windows=len(windows),
        context=context,
    )


def log_softmax(logits: Floats) -> Doubles:
    """log(exp(x) / sum(exp(x))) over the last axis in float64, shifted by the maximum so that nothing overflows.

    Rows with NaN or +inf become NaN.
    """
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def _losses(logits: Floats, targets: Ids, window: int) -> Doubles:
    """-log p(target) of each row of ``logits`` [n, vocab]; float64 [n]."""
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise InputError(
            f"token {targets.max() if targets.max() >= logits.shape[1] else targets.min()} is not in the vocabulary",
            where=f"window {window}",
            limit=f"0 to {logits.shape[1] - 1}",
            remedy="tokenize the text with the model's own tokenizer",
        )
    result = np.empty(len(logits))
    for start in range(0, len(logits), CHUNK):
        rows = slice(start, start + CHUNK)
        result[rows] = -np.take_along_axis(log_softmax(logits[rows]), targets[rows, None], -1)[:, 0]
    return _finite(result, "model", window)


def _divergence(reference: Floats, logits: Floats, window: int) -> Doubles:
    """KL(P || Q) = sum p (log p - log q) of each row, in nats; a token the reference excludes adds nothing."""
    if reference.shape[1] != logits.shape[1]:
        raise InputError(
            f"the reference has a vocabulary of {reference.shape[1]}, the model one of {logits.shape[1]}",
            remedy="compare a model with the reference it was compiled from",
        )
    result = np.empty(len(logits))
    for start in range(0, len(logits), CHUNK):
        rows = slice(start, start + CHUNK)
        log_p, log_q = log_softmax(reference[rows]), log_softmax(logits[rows])
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            terms = np.where(p == 0, 0.0, p * (log_p - log_q))
        # Rounding can leave a sum of zero a few 1e-17 below it.
        result[rows] = np.maximum(terms.sum(-1), 0.0)
    return _finite(result, "reference", window)


def _summary(kl: Doubles, agreed: npt.NDArray[np.bool_]) -> Divergence:
    return Divergence(mean=float(kl.mean()), p99=float(np.percentile(kl, 99)), top1=float(agreed.mean()))


def _checked(logits: Floats, who: str, window: int, *rows: int) -> Floats:
    if logits.ndim != 2 or len(logits) not in rows:
        raise InternalError(
            f"the {who} gave logits of shape {logits.shape}",
            where=f"window {window}",
            limit=f"{' or '.join(str(r) for r in rows)} rows of one vocabulary",
        )
    return logits


def _finite(values: Doubles, who: str, window: int) -> Doubles:
    if np.isnan(values).any():
        raise NumericalError(
            f"the {who}'s logits are not numbers",
            where=f"window {window}",
            limit="finite values",
            remedy="look for overflow in the model, or NaN in its weights",
        )
    return values
