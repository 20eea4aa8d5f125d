"""Where a site stands, read off its name for people to see: nothing is decided by it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LAYER = re.compile(r"layer\.(?P<layer>\d+)\.(?P<role>.+)")


@dataclass(frozen=True)
class Place:
    """``layer.3.mlp.1`` is role ``mlp.1`` of layer 3; outside layers ``layer`` is None and the name is the role."""

    role: str
    layer: int | None = None

    @classmethod
    def of(cls, site: str) -> Place:
        match = _LAYER.fullmatch(site)
        return cls(match["role"], int(match["layer"])) if match else cls(site)


def ranges(numbers: Iterable[int]) -> str:
    """``0-3, 7`` of 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def together(sites: Iterable[str]) -> str:
    """Sites of one role in short: ``mlp.1 of layers 0-3, 7``, or the names of those outside layers."""
    names = list(sites)
    places = [Place.of(name) for name in names]
    layers = [place.layer for place in places if place.layer is not None]
    if len(layers) < len(names) or len({place.role for place in places}) != 1:
        return ", ".join(names)
    return f"{places[0].role} of layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"
