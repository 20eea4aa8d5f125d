"""What tasks of the lm-evaluation-harness say about generation, in the words of ``Session.generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitwright.errors import UnsupportedError

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_LENGTH = ("max_gen_toks", "max_new_tokens", "max_tokens")


def generation_options(given: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """Keyword arguments for ``Session.generate``.

    Greedy unless ``do_sample`` is true or a temperature above 0 is given, whatever the model recommends.

    Args:
        given: ``generation_kwargs`` of a task.
        max_tokens: of an answer where the task does not say.

    Raises:
        UnsupportedError: an option that is not understood; it is named.
    """
    options = dict(given)
    until = options.pop("until", None) or []
    lengths = [value for name in _LENGTH if (value := options.pop(name, None)) is not None]
    sampled = options.pop("do_sample", None)
    sampling = {name: value for name in _SAMPLING if (value := options.pop(name, None)) is not None}
    if options:
        raise UnsupportedError(
            f"the generation option '{next(iter(options))}' is not understood",
            where="generation_kwargs",
            limit=", ".join(("until", "do_sample", *_LENGTH, *_SAMPLING)),
            remedy="remove it from the task, or override it with --gen_kwargs",
        )
    if sampled is None:
        sampled = sampling.get("temperature", 0) > 0
    if not sampled:
        sampling = {"temperature": 0.0, "repetition_penalty": sampling.get("repetition_penalty", 1.0)}
    elif "temperature" not in sampling:
        sampling["temperature"] = 1.0
    stops = (until,) if isinstance(until, str) else tuple(until)
    return {"max_tokens": int(lengths[0]) if lengths else max_tokens, "stop": tuple(s for s in stops if s), **sampling}
