"""Order of hidden units and of the token table's rows for a compilation: the dearest first, so that a matrix cut into
runs of rows gains most.

A run of rows has one scheme. In the order in which training left them, rows of all kinds stand side by side and runs
are alike; sorted by what an error of them costs, the first can have more bits than the last. The order of hidden units
is free: it is absorbed by the weights before and behind, and nothing is computed for it at run time.

The cost of unit j is E[g_j**2 |x|**2] |w_j|**2, summed over the layers that make it, with x their input, g_j the
gradient at their output j and w_j the row that makes it: to first order what rounding w_j with a step in proportion to
its size costs, in the sense of ``frontend/calibrate/gradients.py``.

Rows of the token table, and of the matrix that makes the logits, are in the order of p_t |w_t|**2, with p_t how often
the model predicts token t: the variance of the logit's gradient is p_t (1 - p_t) at a token, and as often the row is
looked up. Their order is a table of its own that both ends of the model read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.errors import UnsupportedError
from bitwright.moments import FREQUENCIES, costs_of

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.frontend.reorder.hidden import Hidden, Order
    from bitwright.frontend.reorder.tokens import TokenRows
    from bitwright.moments import Moments, RowMap


@dataclass(frozen=True)
class Orders:
    """What comes first, by its number before.

    Attributes:
        units: of each hidden layer.
        tokens: of the rows of the token table; None if these cannot change places.
    """

    units: dict[Hidden, Order]
    tokens: tuple[TokenRows, Order] | None = None


@dataclass(frozen=True)
class Reordered:
    """A model with its hidden units and token rows in another order.

    Attributes:
        model: computes what the model it was made from computes, and keeps its digest.
        moments: of its activations.
        places: how many hidden layers there were.
        tokens: how many rows of the token table changed places.
        digest: sha256 of the orders.
    """

    model: ImportedModel
    moments: Moments
    places: int
    tokens: int
    digest: str


def orders_of(model: ImportedModel, moments: Moments) -> Orders:
    """By what units and rows cost, the dearest first; those that cost the same stay in their order.

    Args:
        model: what was calibrated, before anything was done to it.
        moments: with costs, as calibration by gradients finds them.

    Raises:
        UnsupportedError: nothing in the model may change places.
    """
    orders = Orders(_unit_orders(model, moments), _token_order(model, moments))
    if not orders.units and orders.tokens is None:
        raise UnsupportedError(
            "no hidden layer's units may change places, nor rows of the token table",
            where=model.name,
            remedy="leave --reorder out",
        )
    return orders


def _unit_orders(model: ImportedModel, moments: Moments) -> dict[Hidden, Order]:
    from bitwright.frontend.calibrate.products import products
    from bitwright.frontend.reorder.hidden import hidden_places

    outputs = {product.weight: product.output for product in products(model.graph)}
    orders: dict[Hidden, Order] = {}
    for place in hidden_places(model.graph):
        cost: npt.NDArray[np.float64] = np.zeros(place.units)
        for name in place.makers:
            output = outputs.get(f"{name}.T")
            if output is not None:
                cost += moments.store.get(costs_of(output)) * _squares(model, name, axis=0)
        orders[place] = np.argsort(-cost, kind="stable")
    return orders


def _token_order(model: ImportedModel, moments: Moments) -> tuple[TokenRows, Order] | None:
    from bitwright.frontend.reorder.tokens import token_rows

    place = token_rows(model.graph)
    if place is None:
        return None
    squares = _squares(model, place.table, axis=1)
    if place.head is not None:
        squares = squares + _squares(model, place.head, axis=0)
    cost = moments.store.get(FREQUENCIES) * squares
    return place, np.argsort(-cost, kind="stable")


def _squares(model: ImportedModel, name: str, axis: int) -> npt.NDArray[np.float64]:
    """Sums of squares along an axis of a matrix."""
    tensor = model.graph.graph.initializers[name].const_value
    assert tensor is not None  # an initializer of a canonical graph
    sums: npt.NDArray[np.float64] = np.square(np.asarray(tensor.numpy()), dtype=np.float64).sum(axis=axis)
    return sums


def reordered(model: ImportedModel, moments: Moments, orders: Orders) -> Reordered:
    """Put ``model`` in ``orders``; the original stays as it is, and shares what does not change."""
    from bitwright.frontend.reorder.hidden import reorder
    from bitwright.frontend.reorder.tokens import reorder_tokens

    graph = model.graph.clone()
    maps: dict[str, RowMap] = {}
    digest = hashlib.sha256()
    for place, order in orders.units.items():
        maps.update(reorder(graph, place, order))
        digest.update(np.ascontiguousarray(order, dtype="<i8").tobytes())
    moved = 0
    if orders.tokens is not None:
        rows, order = orders.tokens
        reorder_tokens(graph, rows, order)
        digest.update(np.ascontiguousarray(order, dtype="<i8").tobytes())
        moved = int((order != np.arange(rows.tokens)).sum())
    made = replace(model, graph=graph)
    return Reordered(made, moments.mapped(maps), len(orders.units), moved, digest.hexdigest())
