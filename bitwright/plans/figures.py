"""The pictures of a plan: bits of every site, and where the plan lies beside the front of its profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.allocation import Decision, Resource
from bitwright.drawing import new_figure
from bitwright.plans.bits import BitsMap
from bitwright.plans.front import front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST, HIGHEST = 2.0, 9.0
"""Bits at the ends of the colours: 16-bit caches look like 8-bit ones rather than make all others look alike."""

UNITS: dict[Resource, tuple[float, str]] = {
    "bytes": (1e6, "MB of matrices and caches"),
    "decode_ms": (1.0, "decode, ms per token"),
    "prefill_ms": (1.0, "prefill, ms"),
    "kl": (1.0, "predicted KL, nats per token"),
}


def heat_map(found: BitsMap, title: str) -> Figure:
    """Layers from top to bottom, roles from left to right, bits in every cell."""
    rows, columns = found.bits.shape
    figure = new_figure(2.2 + 0.62 * columns, 1.4 + 0.2 * rows)
    axes = figure.subplots()
    colours = axes.imshow(found.bits, aspect="auto", cmap="viridis", vmin=LOWEST, vmax=HIGHEST)
    axes.set_xticks(range(columns), found.roles, rotation=30, ha="right")
    axes.set_yticks(range(rows), found.rows)
    axes.set_ylabel("layer")
    axes.set_title(title)
    for (row, column), bits in np.ndenumerate(found.bits):
        if not np.isnan(bits):
            dark = bits < (LOWEST + HIGHEST) / 2
            axes.text(column, row, f"{bits:.3g}", ha="center", va="center", color="white" if dark else "black", size=6)
    figure.colorbar(colours, ax=axes, label="bits per number, scales included", extend="max")
    return figure


def front_figure(menus: Mapping[str, Sequence[Decision]], plan: Mapping[Resource, float]) -> Figure:
    """The least divergence at every size, and at every time where times are known; the plan is a point beside it.

    Args:
        menus: what each site can have.
        plan: what the plan uses in all.
    """
    resources: list[Resource] = ["bytes", *(r for r in ("decode_ms", "prefill_ms") if r in plan)]
    figure = new_figure(4.4 * len(resources), 3.4)
    panels = figure.subplots(1, len(resources), squeeze=False)[0]
    for axes, resource in zip(panels, resources, strict=True):
        _panel(axes, list(front(menus, resource)), plan, resource)
    return figure


def _panel(axes: Any, points: Sequence[Mapping[Resource, float]], plan: Mapping[Resource, float], at: Resource) -> None:
    scale, unit = UNITS[at]
    positive = [point for point in points if point["kl"] > 0]
    axes.plot([p[at] / scale for p in positive], [p["kl"] for p in positive], label="front, whole matrices")
    axes.plot([plan[at] / scale], [plan["kl"]], "o", label="this plan")
    axes.set_yscale("log")
    axes.set_xlabel(unit)
    axes.set_ylabel(UNITS["kl"][1])
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
