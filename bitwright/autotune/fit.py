"""What a matrix product costs, from measurements of others: calls, rows and weights, each with a price.

    seconds = shape * (call + sum over runs of rows * (row + inputs * rate[scheme]))      call, row, rate >= 0

``rate`` is the seconds that one weight of a scheme takes, be it bandwidth or arithmetic that bounds them. Calls and
rows cost the same whatever the scheme, so that one measured shape gives a scheme's rate. The rate of a scheme that was
not measured is put together from what its parts cost in others. ``shape`` corrects products of a shape that was
measured at some schemes, such as long streams, which are read faster:

    rate = width[kind, bits] + (scale + zero points * zero) / group + second term * (term + term_scale / group)

Both minimise the squares of *relative* errors (non-negative least squares, Lawson and Hanson 1974), so that small
kernels count as much as large ones. Errors are stated as found by leaving one measurement, or one scheme, out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import numpy.typing as npt

from bitwright.errors import UnsupportedError
from bitwright.runs import Run
from bitwright.scheme import LinearScheme

Measurement = tuple[tuple[Run, ...], int, float]
"""Runs of a product, its inputs, seconds."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """Prices of one kind of kernel: one number of tokens and threads, one working set.

    Attributes:
        call, row: seconds of each call and of each output.
        rates: seconds of each weight, by scheme.
        shapes: correction by (outputs, inputs) of a product.
        parts: prices that make up the rate of other schemes, by what is priced.
        error: mean relative error of a product of measured schemes; ``scheme_error``: of one that was not measured.
    """

    call: float
    row: float
    rates: Mapping[LinearScheme, float]
    shapes: Mapping[tuple[int, int], float]
    parts: Mapping[str, float]
    error: float
    scheme_error: float

    def seconds(self, runs: Sequence[Run], inputs: int) -> float:
        """Of one call.

        Raises:
            UnsupportedError: nothing of a run's width was measured.
        """
        outputs = sum(run.rows for run in runs)
        rows = math.fsum(run.rows * self.per_row(run.scheme, outputs, inputs) for run in runs)
        return self.call * self.shapes.get((outputs, inputs), 1.0) + rows

    def per_row(self, scheme: LinearScheme, outputs: int, inputs: int) -> float:
        """Seconds that each row of a scheme adds to a call of a product of this shape."""
        return (self.row + inputs * self.rate(scheme)) * self.shapes.get((outputs, inputs), 1.0)

    def rate(self, scheme: LinearScheme) -> float:
        if scheme in self.rates:
            return self.rates[scheme]
        needed = _features(scheme)
        width = _width(scheme)
        if width not in self.parts:
            known = sorted(name for name in self.parts if name.startswith("width"))
            raise UnsupportedError(
                f"no latency is known for {scheme}",
                limit=f"measured are {', '.join(known) or 'none'}",
                remedy="measure a scheme of its width with `bitwright latency --schemes`",
            )
        return math.fsum(self.parts.get(name, 0.0) * amount for name, amount in needed.items())

    def error_of(self, runs: Sequence[Run]) -> float:
        """The relative error to expect."""
        return self.error if all(run.scheme in self.rates for run in runs) else self.scheme_error


def fit(measurements: Sequence[Measurement]) -> Fit:
    """The prices that explain the measurements of one kind of kernel best."""
    found = _prices(measurements)
    return replace(found, error=_shape_error(measurements), scheme_error=_scheme_error(found.rates))


def _prices(measurements: Sequence[Measurement]) -> Fit:
    """All but the errors."""
    schemes = sorted({run.scheme for runs, _, _ in measurements for run in runs})
    rows = np.zeros((len(measurements), 2 + len(schemes)))
    for index, (runs, inputs, seconds) in enumerate(measurements):
        rows[index, 0] = 1.0
        rows[index, 1] = sum(run.rows for run in runs)
        for run in runs:
            rows[index, 2 + schemes.index(run.scheme)] += run.rows * inputs
        rows[index] /= seconds
    call, row, *rates = _solve(rows).tolist()
    plain = Fit(call, row, dict(zip(schemes, rates, strict=True)), {}, {}, 0.0, 0.0)
    ratios: dict[tuple[int, int], list[float]] = {}
    for runs, inputs, seconds in measurements:
        shape = (sum(run.rows for run in runs), inputs)
        ratios.setdefault(shape, []).append(seconds / plain.seconds(runs, inputs))
    return replace(plain, shapes={shape: median(found) for shape, found in ratios.items()}, parts=_parts(plain.rates))


def _parts(rates: Mapping[LinearScheme, float]) -> dict[str, float]:
    usable = {scheme: rate for scheme, rate in rates.items() if rate > 0}
    names = sorted({name for scheme in usable for name in _features(scheme)})
    if not names:
        return {}
    rows = np.array([[_features(s).get(name, 0.0) / rate for name in names] for s, rate in usable.items()])
    return dict(zip(names, _solve(rows).tolist(), strict=True))


def _features(scheme: LinearScheme) -> dict[str, float]:
    """How much of each priced part a weight of a scheme has."""
    weight, second = scheme.weight, float(scheme.terms == 2)
    per_weight = 1 / weight.group if weight.group else 0.0
    return {
        _width(scheme): 1.0,
        "scale": per_weight,
        "zero": 0.0 if weight.symmetric else per_weight,
        "term": second,
        "term_scale": second * per_weight,
    }


def _width(scheme: LinearScheme) -> str:
    return f"width {scheme.weight.kind} {scheme.weight.bits}"


def _solve(rows: Floats) -> Floats:
    """x >= 0 that minimises |rows x - 1|."""
    from scipy.optimize import nnls

    norms = np.linalg.norm(rows, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    found: Floats = nnls(rows / scale, np.ones(len(rows)))[0] / scale
    return found


def _shape_error(measurements: Sequence[Measurement]) -> float:
    """Leaves one measurement out at a time, where its schemes were measured in another shape too."""

    def predict(left_out: int) -> float | None:
        runs, inputs, seconds = measurements[left_out]
        rest = [m for index, m in enumerate(measurements) if index != left_out]
        if not {run.scheme for run in runs} <= {run.scheme for others, _, _ in rest for run in others}:
            return None
        return abs(_prices(rest).seconds(runs, inputs) / seconds - 1)

    return _mean(predict, len(measurements))


def _scheme_error(rates: Mapping[LinearScheme, float]) -> float:
    """Leaves one scheme out at a time, where another has its width."""
    schemes = [scheme for scheme, rate in rates.items() if rate > 0]

    def predict(left_out: int) -> float | None:
        scheme = schemes[left_out]
        parts = _parts({other: rate for other, rate in rates.items() if other != scheme})
        if _width(scheme) not in parts:
            return None
        found = math.fsum(parts.get(name, 0.0) * amount for name, amount in _features(scheme).items())
        return abs(found / rates[scheme] - 1)

    return _mean(predict, len(schemes))


def _mean(predict: Callable[[int], float | None], count: int) -> float:
    """Mean of the errors there are; 1, which is to say nothing is known, if there are none."""
    found = [error for index in range(count) if (error := predict(index)) is not None]
    return math.fsum(found) / len(found) if found else 1.0
