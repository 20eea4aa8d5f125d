"""Sites: the decision points of a model, found by structure and named for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SiteKind = Literal["linear", "table", "k_cache", "v_cache"]


@dataclass(frozen=True)
class Site:
    """One place where a precision is chosen.

    Attributes:
        name: stable structural name: the position of the site in the graph, e.g. ``layer.3.linear.1`` or ``table``.
        kind: ``linear`` (weights of one matrix product), ``table`` (embedding, and lm_head when they share storage),
            ``k_cache`` or ``v_cache`` (one layer's cache).
        shape: (outputs, inputs) of a matrix; (vocabulary, width) of a table; (heads, head size) of a cache.
        weight: name of the weight parameter in the IR; empty for caches.
        group: sites with the same non-empty value read the same activation (Q/K/V, gate/up): one quantized input.
        tied: the table is also the lm_head's weight.
        bias: a bias vector is added to the outputs.
    """

    name: str
    kind: SiteKind
    shape: tuple[int, int]
    weight: str = ""
    group: str = ""
    tied: bool = False
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1] if self.weight else 0
