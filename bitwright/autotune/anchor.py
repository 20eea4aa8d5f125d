"""What a compiled model takes as a whole: the sums of a latency table are tied to it.

A step is its matrix products and the *rest*: norms, attention, activations, quantization, barriers, launches, Python.
The rest follows from the structure of a model and from how passes fuse it, hardly from the schemes of its weights. It
is measured where it happens, in a model compiled at one uniform scheme, at several depths. The products of that model
are measured there too, so that the prices of kernels timed one by one can be scaled to what they come to in a whole.
How much of the weights the last cache level holds from step to step depends on how many there are: models of several
uniform schemes are measured (``whole``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from bitwright.errors import InputError, UnsupportedError

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, order=True)
class Anchor:
    """One measurement of a compiled model.

    Attributes:
        model: sha256 of the canonical model.
        scheme: of all its matrices; ``caches``: of all its caches, such as ``k16v16``.
        tokens: processed at once: 1 is a decode step, else a chunk of a prompt.
        depth: tokens in the cache before them.
        threads: that worked on it.
        linear: seconds of its matrix products; ``rest``: of everything else.
        spread: of the repeated measurements of the whole, see ``latency.spread``.
    """

    model: str
    scheme: str
    caches: str
    tokens: int
    depth: int
    threads: int
    linear: float
    rest: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.model) or min(self.tokens, self.threads) < 1 or self.depth < 0:
            raise InputError("an anchor of a latency table is malformed", where=str(self))
        if not (self.linear > 0 and self.rest > 0 and self.spread >= 0):
            raise InputError("an anchor of a latency table has no times", where=str(self))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any, where: str) -> Anchor:
        """Raises InputError: a field is missing, unknown or of another type."""
        kinds = dict.fromkeys(("model", "scheme", "caches"), str)
        numbers = dict.fromkeys(("tokens", "depth", "threads"), int)
        times = dict.fromkeys(("linear", "rest", "spread"), float)
        fields: Mapping[str, type] = {**kinds, **numbers, **times}
        if not isinstance(document, dict) or set(document) != set(fields):
            raise InputError("an anchor has other fields than it should", where=where, limit=", ".join(fields))
        for name, kind in fields.items():
            if type(document[name]) is not kind:
                raise InputError(f"an anchor's {name} is no {kind.__name__}", where=where)
        return cls(**document)


@dataclass(frozen=True)
class Anchors:
    """The measurements of one model at one scheme on one number of threads."""

    found: tuple[Anchor, ...]

    def __post_init__(self) -> None:
        if len({(anchor.model, anchor.scheme, anchor.caches, anchor.threads) for anchor in self.found}) > 1:
            raise InputError("anchors of several models were put together", where=str(self.found[:2]))

    @classmethod
    def of(cls, anchors: Sequence[Anchor], model: str, threads: int) -> tuple[Anchors, ...]:
        """Those of a model, by scheme.

        Raises:
            UnsupportedError: there are none.
        """
        found = [a for a in sorted(anchors) if a.model == model and a.threads == threads]
        if not found:
            raise UnsupportedError(
                "the latency table knows nothing about the whole of this model",
                where=f"model {model[:16]}, {threads} threads",
                remedy="measure it with `bitwright latency`",
            )
        return tuple(cls(tuple(same)) for _, same in groupby(found, lambda anchor: (anchor.scheme, anchor.caches)))

    @property
    def scheme(self) -> str:
        return self.found[0].scheme

    @property
    def caches(self) -> str:
        return self.found[0].caches

    def prompt_sizes(self) -> list[int]:
        """Numbers of tokens of the chunks that were measured."""
        return sorted({anchor.tokens for anchor in self.found if anchor.tokens > 1})

    def at(self, tokens: int) -> Anchor:
        """The measurement of so many tokens with the emptiest cache.

        Raises:
            UnsupportedError: there is none.
        """
        found = [anchor for anchor in self.found if anchor.tokens == tokens]
        if not found:
            raise UnsupportedError(
                f"a whole model was not measured with {tokens} tokens",
                where=self.found[0].model[:16],
                remedy="measure it with `bitwright latency`",
            )
        return min(found, key=lambda anchor: anchor.depth)

    def rest(self, tokens: int, depth: int) -> float:
        """Seconds outside matrix products of ``tokens`` tokens behind ``depth`` others.

        Linear between depths and beyond the last (attention reads what there is), and between numbers of tokens.
        """
        if tokens == 1:
            return self._at_depth(1, depth)
        sizes = self.prompt_sizes()
        if not sizes:
            self.at(tokens)
        if tokens in sizes or len(sizes) == 1:
            nearest = tokens if tokens in sizes else sizes[0]
            return self._at_depth(nearest, depth) * tokens / nearest
        low, high = _neighbours(sizes, tokens)
        largest = sizes[-1]
        part = (tokens - low) / (high - low)
        flat = (1 - part) * self.at(low).rest + part * self.at(high).rest
        return max(flat, 0.0) + (self._at_depth(largest, depth) - self.at(largest).rest) * tokens / largest

    def _at_depth(self, tokens: int, depth: int) -> float:
        known = {anchor.depth: anchor.rest for anchor in self.found if anchor.tokens == tokens}
        if depth in known:
            return known[depth]
        if not known:
            self.at(tokens)
        if len(known) == 1:
            return next(iter(known.values()))
        low, high = _neighbours(sorted(known), depth)
        part = (depth - low) / (high - low)
        return (1 - part) * known[low] + part * known[high]


def _neighbours(known: Sequence[int], wanted: int) -> tuple[int, int]:
    """The two numbers of a sorted list that ``wanted`` lies between, or else the two nearest."""
    above = next((i for i, value in enumerate(known) if value > wanted), len(known) - 1)
    high = max(above, 1)
    return known[high - 1], known[high]
