"""Bits per number of every site of a plan, laid out as layers by roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.plan import Plan
from bitwright.plans.place import Place
from bitwright.runs import MixedScheme, Scheme
from bitwright.scheme import AFFINE_BYTES, CacheScheme, LinearScheme
from bitwright.site import Site

SCALE_BITS, ZERO_BITS = 16, 8


def bits_per_number(scheme: Scheme, site: Site | None) -> float:
    """Codes, scales and zero points per weight or cached number.

    Args:
        site: None: a scale per row or head counts nothing, for its length is not known.
    """
    if isinstance(scheme, MixedScheme):
        return sum(run.rows * bits_per_number(run.scheme, site) for run in scheme.runs) / scheme.rows
    if isinstance(scheme, CacheScheme):
        if site is not None:
            return 8 * scheme.bytes_per_token(*site.shape) / (site.shape[0] * site.shape[1])
        return scheme.bits + (8 * AFFINE_BYTES / scheme.group if scheme.group else 0.0)
    return _of_weights(scheme, site)


def _of_weights(scheme: LinearScheme, site: Site | None) -> float:
    weight = scheme.weight
    if weight.is_float:
        return float(weight.bits)
    if site is not None:
        return 8 * weight.storage_bytes(*site.shape) / site.parameters
    scale = SCALE_BITS + (0 if weight.symmetric else ZERO_BITS)
    return weight.bits + (scale / weight.group if weight.group else 0.0)


@dataclass(frozen=True)
class BitsMap:
    """``bits`` float64 [rows, roles], NaN where a layer has no such site; rows are layers, or single sites.

    Single sites, such as the table, come first and have the same number in every column.
    """

    rows: tuple[str, ...]
    roles: tuple[str, ...]
    bits: npt.NDArray[np.float64]


def bits_map(plan: Plan, sites: Mapping[str, Site] | None = None) -> BitsMap:
    """The map of a plan; ``sites``: of its model, if they are known."""
    known = sites or {}
    bits = {name: bits_per_number(scheme, known.get(name)) for name, scheme in plan.schemes.items()}
    places = {name: Place.of(name) for name in bits}
    single = [name for name, place in places.items() if place.layer is None]
    layers = sorted({place.layer for place in places.values() if place.layer is not None})
    roles = tuple(dict.fromkeys(place.role for place in places.values() if place.layer is not None)) or ("",)
    array = np.full((len(single) + len(layers), len(roles)), np.nan)
    for name, place in places.items():
        if place.layer is None:
            array[single.index(name)] = bits[name]
        else:
            array[len(single) + layers.index(place.layer), roles.index(place.role)] = bits[name]
    return BitsMap((*single, *map(str, layers)), roles, array)
