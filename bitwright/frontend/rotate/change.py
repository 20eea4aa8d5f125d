"""What a rotation did to a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitwright.moments import RowMap


@dataclass(frozen=True)
class Change:
    """Attributes:
    places: how many tensors or values were rotated.
    maps: by weight parameter (``Site.weight``), what became of the rows it multiplies.
    """

    places: int
    maps: Mapping[str, RowMap]
