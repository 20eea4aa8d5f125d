"""What logits say about a text and about each other: losses, and the Kullback-Leibler divergence. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InputError, NumericalError
from bitwright.runtime.rows import Floats, Ids

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from the reference's, over some tokens.

    Attributes:
        mean: mean of KL(reference || model) in nats per token.
        p99: its 99th percentile over tokens (linear interpolation).
        top1: share of tokens whose most likely continuation is the same.
    """

    mean: float
    p99: float
    top1: float

    @classmethod
    def of(cls, kl: Doubles, agreed: npt.NDArray[np.bool_]) -> Divergence:
        """Of the tokens' divergences and whether their most likely continuations agree, any shape."""
        return cls(mean=float(kl.mean()), p99=float(np.percentile(kl, 99)), top1=float(agreed.mean()))

    def to_json(self) -> dict[str, Any]:
        """``kl`` and ``top1``."""
        return {"kl": {"mean": self.mean, "p99": self.p99}, "top1": self.top1}


def log_softmax(logits: Floats) -> Doubles:
    """log(exp(x) / sum(exp(x))) over the last axis in float64, shifted by the maximum so that nothing overflows.

    Rows with NaN or +inf become NaN.
    """
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def losses(log_q: Doubles, targets: Ids, where: str) -> Doubles:
    """-log q(target) of each row of log-probabilities [n, vocab]; float64 [n].

    Raises:
        InputError: a target outside the vocabulary.
        NumericalError: log-probabilities that are not numbers.
    """
    if targets.min() < 0 or targets.max() >= log_q.shape[1]:
        raise InputError(
            f"token {targets.max() if targets.max() >= log_q.shape[1] else targets.min()} is not in the vocabulary",
            where=where,
            limit=f"0 to {log_q.shape[1] - 1}",
            remedy="tokenize the text with the model's own tokenizer",
        )
    result: Doubles = -np.take_along_axis(log_q, targets[:, None], -1)[:, 0]
    return finite(result, "model", where)


def divergence(log_p: Doubles, log_q: Doubles, where: str) -> Doubles:
    """KL(P || Q) = sum p (log p - log q) of each row, in nats; a token the reference P excludes adds nothing.

    Raises:
        InputError: the vocabularies differ.
        NumericalError: log-probabilities that are not numbers.
    """
    if log_p.shape[1] != log_q.shape[1]:
        raise InputError(
            f"the reference has a vocabulary of {log_p.shape[1]}, the model one of {log_q.shape[1]}",
            remedy="compare a model with the reference it was compiled from",
        )
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p == 0, 0.0, p * (log_p - log_q))
    # Rounding can leave a sum of zero a few 1e-17 below it.
    return finite(np.maximum(terms.sum(-1), 0.0), "reference", where)


def finite(values: Doubles, who: str, where: str) -> Doubles:
    """``values``.

    Raises:
        NumericalError: one of them is not a number.
    """
    if np.isnan(values).any():
        raise NumericalError(
            f"the {who}'s logits are not numbers",
            where=where,
            limit="finite values",
            remedy="look for overflow in the model, or NaN in its weights",
        )
    return values
