"""Maps of values (``v4rowm``) in the weights of a compilation: the layer that makes values maps them, and the layers
that read attention map its means back, so that steps need not.

Where that cannot be, because others read the values or the output as well, steps map (``passes/map_keys.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bitwright.cachemaps import CacheMaps

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Moments, RowMap


@dataclass(frozen=True)
class Folded:
    """A model whose weights map values, where they can.

    Attributes:
        model: computes what the model it was made from computes, and keeps its digest.
        moments: of its activations, if those of the model were given.
        maps: what is left to do in every step.
        weights: names of the matrices' parameters in the IR (as ``Site.weight``) that changed.
        events: counts for the report, by what was done; empty if nothing was.
        digests: of what was done.
    """

    model: ImportedModel
    moments: Moments | None
    maps: CacheMaps
    weights: frozenset[str] = frozenset()
    events: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def folded_values(model: ImportedModel, moments: Moments | None, maps: CacheMaps) -> Folded:
    """Fold the maps of values among ``maps``; the original is left as it is, and shares tensors that do not change.

    Raises:
        UnsupportedError: a map is not finite.
    """
    from bitwright.frontend.rotate.values import map_values, value_places

    if not maps.values:
        return Folded(model, moments, maps)
    graph = model.graph.clone()
    changes: dict[str, RowMap] = {}
    weights: set[str] = set()
    layers: set[int] = set()
    digest = hashlib.sha256()
    for place in value_places(graph):
        found = maps.values.get(place.layer)
        if found is None:
            continue
        mixed = found.mixed(halves=False)
        matrices = mixed.forward.astype(np.float64) * mixed.factor(f"layer.{place.layer}.v_cache")[:, None, None]
        changes |= map_values(graph, place, matrices)
        weights.update(f"{name}.T" for name in (place.makers[0], *place.readers))
        layers.add(place.layer)
        digest.update(matrices.tobytes())
    if not layers:
        return Folded(model, moments, maps)
    left = CacheMaps(
        maps.keys, {layer: found for layer, found in maps.values.items() if layer not in layers}, frozenset(layers)
    )
    moments = None if moments is None else moments.mapped(changes)
    events, digests = {"fold_values": {"layers": len(layers)}}, {"values": digest.hexdigest()}
    return Folded(replace(model, graph=graph), moments, left, frozenset(weights), events, digests)


def foldable(model: ImportedModel) -> frozenset[int]:
    """The layers whose values' maps fit into weights."""
    from bitwright.frontend.rotate.values import value_places

    return frozenset(place.layer for place in value_places(model.graph))
