"""Order of hidden units for a compilation: the dearest first, so that a matrix cut into runs of rows gains most.

A run of rows has one scheme. In the order in which training left them, rows of all kinds stand side by side and runs
are alike; sorted by what an error of them costs, the first can have more bits than the last. The order of hidden units
is free: it is absorbed by the weights before and behind, and nothing is computed for it at run time.

The cost of unit j is E[g_j**2 |x|**2] |w_j|**2, summed over the layers that make it, with x their input, g_j the
gradient at their output j and w_j the row that makes it: to first order what rounding w_j with a step in proportion to
its size costs, in the sense of ``frontend/calibrate/gradients.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.errors import UnsupportedError
from bitwright.moments import costs_of

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.frontend.reorder.hidden import Hidden, Order
    from bitwright.moments import Moments, RowMap

Orders = dict["Hidden", "Order"]


@dataclass(frozen=True)
class Reordered:
    """A model with its hidden units in another order.

    Attributes:
        model: computes what the model it was made from computes, and keeps its digest.
        moments: of its activations.
        places: how many hidden layers there were.
        digest: sha256 of the orders.
    """

    model: ImportedModel
    moments: Moments
    places: int
    digest: str


def orders_of(model: ImportedModel, moments: Moments) -> Orders:
    """By what units cost, the dearest first; units that cost the same stay in their order.

    Args:
        model: what was calibrated, before anything was done to it.
        moments: with costs, as calibration by gradients finds them.

    Raises:
        UnsupportedError: the model has no hidden layer whose units may change places.
    """
    from bitwright.frontend.calibrate.products import products
    from bitwright.frontend.reorder.hidden import hidden_places

    outputs = {product.weight: product.output for product in products(model.graph)}
    orders: Orders = {}
    for place in hidden_places(model.graph):
        cost: npt.NDArray[np.float64] = np.zeros(place.units)
        for name in place.makers:
            output = outputs.get(f"{name}.T")
            if output is not None:
                tensor = model.graph.graph.initializers[name].const_value
                assert tensor is not None  # an initializer of a canonical graph
                squares = np.square(np.asarray(tensor.numpy()), dtype=np.float64).sum(axis=0)
                cost += moments.store.get(costs_of(output)) * squares
        orders[place] = np.argsort(-cost, kind="stable")
    if not orders:
        raise UnsupportedError(
            "no hidden layer's units may change places", where=model.name, remedy="leave --reorder out"
        )
    return orders


def reordered(model: ImportedModel, moments: Moments, orders: Orders) -> Reordered:
    """Put the units of ``model`` in ``orders``; the original stays as it is, and shares what does not change."""
    from bitwright.frontend.reorder.hidden import reorder

    graph = model.graph.clone()
    maps: dict[str, RowMap] = {}
    digest = hashlib.sha256()
    for place, order in orders.items():
        maps.update(reorder(graph, place, order))
        digest.update(np.ascontiguousarray(order, dtype="<i8").tobytes())
    return Reordered(replace(model, graph=graph), moments.mapped(maps), len(orders), digest.hexdigest())
