"""Equalisation for a compilation: the same function with channels that share scales better, and its moments."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.errors import UnsupportedError

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Moments, RowMap


@dataclass(frozen=True)
class Equalised:
    """A model after equalisation.

    Attributes:
        model: computes what the model it was made from computes, and keeps its digest.
        moments: of its activations.
        places: how many there were.
        digest: sha256 of the factors.
    """

    model: ImportedModel
    moments: Moments
    places: int
    digest: str


def equalised(model: ImportedModel, moments: Moments) -> Equalised:
    """Move the best factors between the layers of ``model``; see ``frontend/equalise``.

    Raises:
        UnsupportedError: there is no place where factors can move.
    """
    from bitwright.frontend.equalise.apply import factors_of, scaled, spread
    from bitwright.frontend.equalise.places import places
    from bitwright.passes.quantizers.objective import conditional

    factors, maps = {}, {}
    digest = hashlib.sha256()
    for place in places(model.graph):
        cost = conditional(moments.store.get(place.activation))
        factors[place] = factors_of(model.graph, place, cost)
        divided = _divided(spread(place, factors[place]))
        maps.update({f"{name}.T": divided for name in place.readers})
        digest.update(np.ascontiguousarray(factors[place], dtype="<f4").tobytes())
    if not factors:
        raise UnsupportedError(
            "no factor can move between layers without changing what the model computes",
            where=model.name,
            remedy="leave --equalise out",
        )
    changed = replace(model, graph=scaled(model.graph, factors))
    return Equalised(changed, moments.mapped(maps), len(factors), digest.hexdigest())


def _divided(factors: npt.NDArray[np.float32]) -> RowMap:
    return lambda rows: rows / factors
