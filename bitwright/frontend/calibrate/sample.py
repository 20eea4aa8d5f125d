"""Text that a model samples itself: data to calibrate on where there is no other (Liu et al. 2023, "LLM-QAT")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids

Progress = Callable[[int, int], None]


def sample(
    model: ImportedModel,
    interpreter: Interpreter,
    windows: int,
    length: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ids:
    """Sample from the model's own distribution at temperature 1, int64 [windows, length].

    A window begins with the model's first token of a text, or, where it has none, with a token drawn uniformly. After a
    token that ends a text the model just goes on. The weights are in memory meanwhile: every token needs all of them.

    Args:
        seed: equal seeds give equal text, up to what the order of float additions changes.
        progress: called with (windows done, windows).
    """
    random = np.random.default_rng(seed)
    result = np.empty((windows, length), np.int64)
    with interpreter.resident():
        for done, window in enumerate(result, start=1):
            window[0] = _first(model, random)
            past = interpreter.empty_past()
            for position in range(1, length):
                logits, past = interpreter.step(window[position - 1 : position], past)
                # The largest of logits plus Gumbel noise is a sample of their softmax.
                window[position] = (logits[0] + random.gumbel(size=logits.shape[1])).argmax()
            if progress is not None:
                progress(done, windows)
    return result


def _first(model: ImportedModel, random: np.random.Generator) -> int:
    begin = model.generation.get("bos_token_id")
    return int(begin) if isinstance(begin, int) else int(random.integers(model.vocab))
