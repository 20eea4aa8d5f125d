"""The quantizers by name.

======== =========================================================================================================
``rtn``  round to nearest: needs no calibration
``clip`` round to nearest with searched scales; errors count as much as the mean square of the input they multiply
``gptq`` searched scales and error feedback between columns (GPTQ / LDLQ)
``auto`` for every output the best of the three, then scales and codes refined on the layer's output error
======== =========================================================================================================

Each but ``rtn`` has, in the objective it minimises, no output that is worse than with ``rtn``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bitwright.options import QuantizerName
from bitwright.passes.quantizers.feedback import error_feedback
from bitwright.passes.quantizers.fit import fit_groups
from bitwright.passes.quantizers.grid import Floats, Grid, reciprocal
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.passes.quantizers.objective import damped, row_losses
from bitwright.passes.quantizers.refine import refine
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.passes.quantizers.state import State
from bitwright.scheme import WeightScheme

ROUNDS = 2
"""Rounds of refinement of ``auto``."""

BLOCK_WEIGHTS = 1 << 21
"""Weights at work at a time: the temporaries of a large table would take many times its size."""

_Worker = Callable[[Floats, WeightScheme, Floats], State]


def quantize(name: QuantizerName, weights: Floats, scheme: WeightScheme, moment: Floats | None) -> QuantizedMatrix:
    """Quantize float32 [outputs, inputs] to a uniform scheme.

    Args:
        moment: H = E[x x^T] of the layer's input, float32 [inputs, inputs]; None: all inputs count the same, and error
            feedback has nothing to work with.

    Raises:
        UnsupportedError: a group's scale does not fit half precision.
    """
    if name == "rtn":
        return round_to_nearest(weights, scheme)
    work = _WORKERS[name]
    shape = damped(moment) if moment is not None else np.eye(weights.shape[1], dtype=np.float32)
    rows = max(BLOCK_WEIGHTS // weights.shape[1], 1)
    starts = range(0, len(weights), rows)
    return _joined([work(weights[start : start + rows], scheme, shape).matrix(scheme) for start in starts])


def _joined(blocks: list[QuantizedMatrix]) -> QuantizedMatrix:
    zeros: list[npt.NDArray[np.uint8]] = [block.zeros for block in blocks if block.zeros is not None]
    return QuantizedMatrix(
        np.concatenate([block.codes for block in blocks]),
        np.concatenate([block.scales for block in blocks]),
        np.concatenate(zeros) if zeros else None,
    )


def searched(weights: Floats, scheme: WeightScheme, moment: Floats) -> State:
    """Round to nearest with the scales of :func:`fit_groups`, weighted by H's diagonal."""
    outputs, inputs = weights.shape
    groups = scheme.groups(inputs)
    columns = np.ascontiguousarray(weights.reshape(outputs * groups, -1).T)
    importance = np.tile(np.diag(moment).reshape(groups, -1).T, (1, outputs))
    scales, zeros = fit_groups(columns, importance, scheme)
    values = Grid.of(scheme).nearest(columns * reciprocal(scales.astype(np.float32)), zeros)
    return State(
        np.ascontiguousarray(values.T).reshape(outputs, inputs),
        scales.reshape(outputs, groups),
        None if zeros is None else zeros.reshape(outputs, groups),
    )


def _guarded(weights: Floats, scheme: WeightScheme, moment: Floats) -> State:
    """Error feedback, but round to nearest for the outputs that it makes worse."""
    return _best(weights, moment, [_nearest(weights, scheme), error_feedback(weights, scheme, moment)])


def _refined(weights: Floats, scheme: WeightScheme, moment: Floats) -> State:
    states = [_nearest(weights, scheme), searched(weights, scheme, moment), error_feedback(weights, scheme, moment)]
    return refine(_best(weights, moment, states), weights, scheme, moment, ROUNDS)


def _nearest(weights: Floats, scheme: WeightScheme) -> State:
    return State.of(round_to_nearest(weights, scheme), scheme)


def _best(weights: Floats, moment: Floats, states: list[State]) -> State:
    """Per output the state of least loss; the first of equals."""
    best = states[0]
    losses = row_losses(best.weights - weights, moment)
    for state in states[1:]:
        found = row_losses(state.weights - weights, moment)
        best = state.rows(found < losses, best)
        losses = np.minimum(found, losses)
    return best


_WORKERS: dict[QuantizerName, _Worker] = {"clip": searched, "gptq": _guarded, "auto": _refined}
