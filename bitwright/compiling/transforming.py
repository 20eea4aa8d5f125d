"""What is done to a model before it is quantized that leaves what it computes as it is.

Factors move between layers, hidden units and token rows change places, and what is left is rotated, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bitwright.compiling.equalisation import equalised
from bitwright.compiling.reordering import orders_of, reordered
from bitwright.compiling.rotation import rotated
from bitwright.rotated_parts import Part

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Moments


@dataclass(frozen=True)
class Transformed:
    """A model that computes what the one it was made from computes, and keeps its digest.

    Attributes:
        moments: of its activations, if those of the original were given.
        events: counts for the report, by what was done; empty if nothing was.
        digests: of what was done.
    """

    model: ImportedModel
    moments: Moments | None
    events: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def transformed(
    model: ImportedModel, moments: Moments | None, *, equalise: bool, reorder: bool, rotate: tuple[Part, ...]
) -> Transformed:
    """The model equalised and reordered, if ``moments`` are given, and with ``rotate`` rotated.

    Raises:
        UnsupportedError: there is nothing of the kind in the model.
    """
    orders = orders_of(model, moments) if reorder and moments is not None else None
    events: dict[str, Mapping[str, int]] = {}
    digests: dict[str, str] = {}
    if equalise and moments is not None:
        equal = equalised(model, moments)
        model, moments = equal.model, equal.moments
        events["equalise"], digests["equalisation"] = {"places": equal.places}, equal.digest
    if orders is not None and moments is not None:
        sorted_ = reordered(model, moments, orders)
        model, moments = sorted_.model, sorted_.moments
        events["reorder"], digests["order"] = {"places": sorted_.places, "tokens": sorted_.tokens}, sorted_.digest
    if rotate:
        turned = rotated(model, rotate, moments)
        model, moments = turned.model, turned.moments
        events["rotate"], digests["rotation"] = turned.places, turned.digest
    return Transformed(model, moments, events, digests)
