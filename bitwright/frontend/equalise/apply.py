"""Move factors between the tensors of a canonical graph."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.frontend.equalise.factors import Floats, best_factors
from bitwright.frontend.equalise.places import Place
from bitwright.frontend.neighbours import change

Doubles = npt.NDArray[np.float64]


def scaled(model: ir.Model, factors: Mapping[Place, Floats]) -> ir.Model:
    """A copy of ``model`` that computes the same; its other tensors are shared, the changed ones computed when read."""
    copy = model.clone()
    weights = copy.graph.initializers
    for place, s in factors.items():
        for name in place.divided:
            change(weights[name], partial(np.multiply, 1 / s.astype(np.float64)))
        for name in place.readers:
            change(weights[name], partial(np.multiply, spread(place, s).astype(np.float64)[:, None]))
    return copy


def spread(place: Place, factors: Floats) -> Floats:
    """Factors [channels] as the readers see them, [inputs]."""
    kv_heads, group, elements = place.heads
    wide = np.broadcast_to(factors.reshape(kv_heads, 1, elements), (kv_heads, group, elements))
    result: Floats = np.ascontiguousarray(wide).reshape(-1)
    return result


def factors_of(model: ir.Model, place: Place, cost: Doubles) -> Floats:
    """The best factors of a place; ``cost``: of an error in each input of its readers, float64 [inputs]."""
    weights = [_array(model.graph.initializers[name]) for name in place.readers]
    square = sum(np.square(weight, dtype=np.float64).sum(axis=1) for weight in weights)
    magnitude = np.asarray(square) / sum(weight.shape[1] for weight in weights)
    return best_factors(_gathered(place, cost), _gathered(place, magnitude))


def _gathered(place: Place, values: Doubles) -> Doubles:
    """Sums over the query heads that share a channel: [inputs] to [channels]."""
    total: Doubles = values.reshape(place.heads).sum(axis=1).reshape(-1)
    return total


def _array(value: ir.Value) -> npt.NDArray[np.float32]:
    assert value.const_value is not None  # an initializer of a canonical graph
    return np.asarray(value.const_value.numpy())
