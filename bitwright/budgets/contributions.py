"""How much of a plan's divergence each site is answerable for, with all other sites quantized as well.

Near the float model the divergence is a quadratic form, 1/2 D^T F D, in the errors D of all sites. Its gradient at the
quantized model times a site's own error, halved, is that site's part, products with all others' errors included; the
parts sum to the divergence as far as the form is quadratic. One run forward and backward gives the parts of all sites.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bitwright.budgets.simulation import Simulation, cache_of, initializer_of
from bitwright.runs import Scheme

if TYPE_CHECKING:
    import torch

    from bitwright.site import Site


def contributions(simulation: Simulation, schemes: Mapping[str, Scheme]) -> dict[str, float]:
    """Nats per token by site, over all windows of ``simulation``; a part can be negative where errors cancel."""
    import torch

    points, interpreter = simulation.points, simulation.interpreter
    inputs = {points.products[s.weight].activation for s in simulation.sites if s.weight in points.products}
    places: dict[str, list[Site]] = defaultdict(list)
    for site in simulation.sites:
        for name in _outputs(simulation, site):
            places[name].append(site)
    caches = {name for name, sites in places.items() if not all(site.weight for site in sites)}
    totals: dict[str, float] = defaultdict(float)
    reference = simulation.reference
    floats = {site.name: torch.from_numpy(simulation.weights(site)) for site in simulation.sites if site.weight}
    for number, window in enumerate(simulation.windows):
        exact: dict[str, torch.Tensor] = {}
        leaves: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor, exact: dict[str, torch.Tensor] = exact) -> None:
            exact[name] = value.detach()

        def leaf(name: str, value: torch.Tensor, leaves: dict[str, torch.Tensor] = leaves) -> torch.Tensor:
            leaves[name] = value if value.requires_grad else value.detach().requires_grad_()
            return leaves[name]

        with (
            interpreter.observe(inputs | caches, keep),
            simulation.changed(schemes),
            interpreter.observe(places, leaf),
            torch.enable_grad(),
        ):
            logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
            logs = torch.log_softmax(logits[simulation.skip :].float(), -1)
            loss = (reference[number].exp() * (reference[number] - logs)).sum(-1).mean()
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        with torch.no_grad():
            for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
                for site in places[name] if gradient is not None else []:
                    right = _right(simulation, site, name, floats, exact, window)
                    totals[site.name] += float((gradient * (value - right)).sum()) / 2
    return {name: total / len(simulation.windows) for name, total in totals.items()}


def _outputs(simulation: Simulation, site: Site) -> list[str]:
    """Values of the graph that a site's error shows in first."""
    points = simulation.points
    if not site.weight:
        return [cache_of(site, points)]
    names = [points.products[site.weight].output] if site.weight in points.products else []
    return names + ([points.look_ups[site.weight]] if site.weight in points.look_ups else [])


def _right(
    simulation: Simulation,
    site: Site,
    name: str,
    floats: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    window: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> torch.Tensor:
    """What the value would be without the site's own error."""
    import torch

    if not site.weight:
        return exact[name]
    product = simulation.points.products.get(site.weight)
    if product is not None and name == product.output:
        return exact[product.activation] @ floats[site.name].T
    stored, _ = initializer_of(site.weight)
    assert stored in simulation.interpreter.weights
    rows = torch.from_numpy(window)
    rank = simulation.points.rank
    if rank is not None:
        rows = simulation.interpreter.weights[rank].long()[rows]
    return floats[site.name][rows][None]
