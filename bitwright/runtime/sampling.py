"""Choose the next token from logits. NumPy only.

The steps and their order are those of Hugging Face transformers' generation, so figures can be compared:

1. repetition penalty: the logit of every token seen so far is divided by the penalty if positive, else multiplied by it
   (Keskar et al., CTRL, 2019, section 4.1);
2. temperature 0: the largest logit wins (the lowest id among equals) and the steps below do not apply;
3. logits / temperature;
4. top-k: the k largest logits stay (and all that equal the k-th);
5. top-p: the smallest set of most probable tokens whose probabilities sum to at least p stays (Holtzman et al., 2020);
6. min-p: tokens at least min_p times as probable as the most probable one stay (Nguyen et al., 2024);
7. one draw from what is left, by inverting the cumulative distribution in the order of token ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from bitwright.errors import NumericalError, UsageError

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 3e38
"""About the largest float32."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens. The defaults are greedy.

    Attributes:
        temperature: 0 is greedy; 1 the model's own distribution; at most 100.
        top_k: 0 keeps all tokens.
        top_p: in (0, 1]; 1 keeps all tokens.
        min_p: in [0, 1); 0 keeps all tokens.
        repetition_penalty: above 0, at most 100; 1 is none.
        seed: of the random generator; equal seeds give equal answers.

    Raises:
        UsageError: a value outside these ranges, or no number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            number = isinstance(value, Real) and not isinstance(value, bool)
            _check(name, value, number, "a number")
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "0 (greedy) to 100")
        _check("top_k", self.top_k, isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 for all tokens")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0, at most 1")
        _check("min_p", self.min_p, 0.0 <= self.min_p < 1.0, "at least 0, below 1")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0.0 < penalty <= 100.0, "above 0 (1 is none), at most 100")
        _check("seed", self.seed, isinstance(self.seed, int) and 0 <= self.seed < 2**64, "a whole number below 2^64")

    @classmethod
    def recommended(cls, generation: Mapping[str, Any], **given: Any) -> SamplingOptions:
        """Options of ``generation_config.json`` if it says ``do_sample``, overridden by those given (not None)."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        advice = {name: generation[name] for name in names if generation.get("do_sample") and name in generation}
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{**advice, **chosen})


@dataclass(frozen=True)
class Prediction:
    """What the model says of the next token.

    Attributes:
        logits: float32 [vocab], which the next step may overwrite.
        best: the likeliest token where the step has looked for it, -1 if a logit is not finite; else None.
    """

    logits: np.ndarray
    best: int | None = None


def _check(name: str, value: object, valid: bool, limit: str) -> None:
    if not valid or not math.isfinite(value):  # type: ignore[arg-type]
        raise UsageError(f"{name} is {value!r}", where=name, limit=limit, remedy="choose a value in that range")


class Sampler:
    """Draws tokens one after the other from one seeded generator."""

    def __init__(self, options: SamplingOptions) -> None:
        import numpy as np

        self.options = options
        self._random = np.random.default_rng(options.seed)

    def choose(self, prediction: Prediction, seen: Iterable[int]) -> int:
        """As calling the sampler with the logits, which are not looked at if greedy decoding has its token already."""
        greedy = self.options.temperature == 0.0 and self.options.repetition_penalty == 1.0
        if greedy and prediction.best is not None and prediction.best >= 0:
            return prediction.best
        return self(prediction.logits, seen)

    def __call__(self, logits: np.ndarray, seen: Iterable[int]) -> int:
        """The next token id.

        Args:
            logits: float32 [vocab]; not changed.
            seen: ids of the prompt and of the answer so far, for the repetition penalty.

        Raises:
            NumericalError: a logit is NaN or infinite.
        """
        import numpy as np

        if not (np.isfinite(logits.max()) and np.isfinite(logits.min())):
            raise NumericalError("the model's logits are not finite", remedy="compile it with a wider scheme")
        scores = penalize(logits, seen, self.options.repetition_penalty)
        if self.options.temperature == 0.0:
            return int(scores.argmax())
        ids, probabilities = candidates(scores, self.options)
        cumulative = np.cumsum(probabilities)
        # The sum may miss 1 by rounding, so the draw is scaled; probabilities here are all above 0.
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(drawn, len(ids) - 1)])


def penalize(logits: np.ndarray, seen: Iterable[int], penalty: float) -> np.ndarray:
    """Step 1: float32 [vocab] with the logits of ``seen`` made less likely."""
    import numpy as np

    ids = np.unique(np.fromiter(seen, dtype=np.int64)) if penalty != 1.0 else ()
    if len(ids) == 0:
        return logits
    scores = logits.copy()
    scores[ids] = np.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
    return scores


def candidates(scores: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """Steps 3 to 6: ids [m] of the tokens that stay, ascending, and their probabilities float64 [m], which sum to 1.

    Exponentials are float32 (relative error 1e-7, three times as fast), sums float64.
    """
    import numpy as np

    # The difference first: a tiny temperature then gives -inf, whose exponential is 0, and never inf - inf.
    with np.errstate(over="ignore"):
        weights = np.exp((scores - scores.max()) * np.float32(min(1.0 / options.temperature, _LARGEST)))
    stays = weights > 0
    if 0 < options.top_k < len(scores):
        stays &= scores >= np.partition(scores, -options.top_k)[-options.top_k]
    ids = np.flatnonzero(stays)
    weights = weights[ids]
    probabilities = weights / weights.sum(dtype=np.float64)
    if options.top_p < 1.0:
        ids, probabilities = _keep(ids, probabilities, _top_p(probabilities, options.top_p))
    if options.min_p > 0.0:
        ids, probabilities = _keep(ids, probabilities, probabilities >= options.min_p * probabilities.max())
    return ids, probabilities


def _top_p(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Mask [m] of the smallest set of most probable tokens that sums to ``top_p``; among equals, lower ids first."""
    import numpy as np

    # All tokens less probable than (1 - p) / m sum to less than 1 - p, so none of them is in that set: sorting the
    # others alone gives the same set, ten times faster for large vocabularies.
    likely = np.flatnonzero(probabilities >= (1.0 - top_p) / len(probabilities))
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    mask = np.zeros(len(probabilities), dtype=bool)
    mask[order[before < top_p]] = True
    return mask


def _keep(ids: np.ndarray, probabilities: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = probabilities[mask]
    return ids[mask], kept / kept.sum()
