"""Between times that were measured: by a number of tokens, a context, or a working set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

_Point = TypeVar("_Point", int, float)


def by_working_set(known: Mapping[int, float], wanted: int | None) -> float:
    """Between times in working sets: linear in 1 / size**2, outside constant; None: in the largest.

    The share of the weights that is still in the last cache level when it is read again falls that steeply: of 32 MiB,
    48, 80 and 128 MiB give straight lines at every width (docs/decisions.md, 29).
    """
    return between({-(size**-2.0): time for size, time in known.items()}, None if wanted is None else -(wanted**-2.0))


def between(known: Mapping[_Point, float], wanted: float | None, *, beyond: bool = False) -> float:
    """Linear between the points that are known; outside constant, or going on as between the last two (``beyond``).

    One point alone is proportional to its number if ``beyond``.
    """
    points = sorted(known)
    if wanted in known:
        return known[wanted]  # type: ignore[index]  # None is no key
    if wanted is None:
        return known[points[-1]]
    if len(points) == 1:
        return known[points[0]] * (wanted / points[0] if beyond else 1)
    if not beyond and not points[0] < wanted < points[-1]:
        return known[points[0] if wanted < points[0] else points[-1]]
    above = next((i for i, point in enumerate(points) if point > wanted), len(points) - 1)
    low, high = points[max(above, 1) - 1], points[max(above, 1)]
    part = (wanted - low) / (high - low)
    return max((1 - part) * known[low] + part * known[high], 0.0)
