"""Maps of keys and values that leave attention as it is and make its caches easy to quantize.

Softmax ignores what is added to all scores of a query, so keys may be shifted by any vector m, and
q . (k - m) = (B^-T q) . (B (k - m)) for any invertible B. Outputs are weighted means of values, so that values may be
multiplied with any B, and the means with B^-1.

An error of what is stored is multiplied with the inverse: if the gradients at a cache have E[g g^T] = G, and what it
holds has the covariance C, the expected loss is smallest, at equal steps in every direction, where both become the same
diagonal matrix S ("balancing", Moore 1981): with Cholesky factors G = L L^T, C = R R^T and the singular value
decomposition L^T R = U S V^T it is B = S^-1/2 U^T L^T, B^-1 = R V S^-1/2. An orthonormal matrix on top spreads S
evenly over the elements, which share one step.

For keys G is half the gradients' moment and half the queries', at equal traces: gradients know which tokens are
attended to, and are noisy; queries say what an error does to the scores of all tokens alike. Together they are better
than either (docs/decisions.md).

Artifacts store the matrices in half precision. A factor between a map and its inverse changes nothing but the size of
what the cache holds, so that it is a power of two that gives both the same largest element.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.errors import UnsupportedError

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

RIDGE = 1e-2
"""Part of the mean eigenvalue that is added to all: directions that calibration hardly saw stay within bounds."""

HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class HeadStatistics:
    """What calibration knows of one layer's rotated keys, or of its values, per key/value head.

    Attributes:
        mean: [kv_heads, D].
        square: E[x x^T], [kv_heads, D, D].
        gradients: E[g g^T / |g|] over the gradients g of log-probabilities there, |g| over all heads of a token,
            [kv_heads, D, D]; the scale does not matter.
        queries: of keys: E[q q^T] over the queries that read the head, [kv_heads, D, D].
    """

    mean: Array
    square: Array
    gradients: Array
    queries: Array | None = None


@dataclass(frozen=True)
class HeadMap:
    """Maps of one layer's keys or values, as rows times matrices: x' = x @ forward[h] + shift[h]; float32.

    Attributes:
        forward: [kv_heads, D, D].
        inverse: of each, [kv_heads, D, D].
        shift: [kv_heads, D]; zeros for values.
        spread: variances of the elements of x', [kv_heads, D], as good as sorted, the largest first.
    """

    forward: Floats
    inverse: Floats
    shift: Floats
    spread: Floats

    def mixed(self, halves: bool) -> HeadMap:
        """The map with an orthonormal matrix on top, so that all elements have about one size.

        Args:
            halves: mix the first and the second half of the elements by themselves, and let the second have the size
                of the first: what has fewer bits there is to span the same range.
        """
        size = self.spread.shape[1]
        if not halves:
            mix = np.broadcast_to(mixing(size), self.forward.shape)
            return self._times(mix, mix.transpose(0, 2, 1))
        block = np.kron(np.eye(2), mixing(size // 2))
        first, second = np.split(self.spread.astype(np.float64), 2, axis=1)
        ratio = np.sqrt(first.mean(1) / np.maximum(second.mean(1), np.finfo(np.float32).tiny))
        sizes = np.repeat(np.stack([np.ones_like(ratio), ratio], axis=1), size // 2, axis=1)
        return self._times(block * sizes[:, None, :], (block / sizes[:, None, :]).transpose(0, 2, 1))

    def halves(self, site: str) -> HeadMap:
        """The map whose matrices are numbers of half precision, as artifacts store them; the shift stays single.

        Each rounded element is off by at most 2^-11 of the largest in its row of the map or column of the inverse: of
        what an element of a key or value is multiplied with there, or made of. Keys stay centred, because the shift is
        that of the rounded map.

        Args:
            site: the cache, for messages.

        Raises:
            UnsupportedError: numbers are not finite, or some of these rows and columns do not fit the range of halves.
        """
        factor = self.factor(site)[:, None, None]
        forward, inverse = self.forward * factor, self.inverse / factor
        for rows in (forward, inverse.transpose(0, 2, 1)):
            sizes = np.abs(rows).max(2)
            if sizes.min() < HALF.smallest_normal or sizes.max() > HALF.max:
                raise _unfit(site, f"the largest elements of its rows are {sizes.min():.2g} to {sizes.max():.2g}")
        rounded = forward.astype(np.float16).astype(np.float64)
        shift = np.einsum("hd,hde,hef->hf", self.shift, self.inverse.astype(np.float64), rounded)
        parts = (rounded, inverse.astype(np.float16), shift, self.spread * factor[:, :, 0] ** 2)
        return HeadMap(*(np.ascontiguousarray(part, dtype=np.float32) for part in parts))

    def factor(self, site: str) -> Array:
        """By head: the power of two between the map and its inverse that makes their largest elements alike.

        Raises:
            UnsupportedError: numbers are not finite, or all zero; ``site`` is for the message.
        """
        largest = np.stack([np.abs(part).max((1, 2)) for part in (self.forward, self.inverse)]).astype(np.float64)
        if not (np.isfinite(largest).all() and largest.all() and np.isfinite(self.shift).all()):
            raise _unfit(site, "its elements are not finite, or all zero")
        factor: Array = np.exp2(np.rint(np.log2(largest[1] / largest[0]) / 2))
        return factor

    def _times(self, mix: Array, back: Array) -> HeadMap:
        shift = np.einsum("hd,hde->he", self.shift, mix)
        spread = np.einsum("hd,hde->he", self.spread, np.square(mix))
        parts = (self.forward @ mix, back @ self.inverse, shift, spread)
        return HeadMap(*(np.ascontiguousarray(part, dtype=np.float32) for part in parts))


def _unfit(site: str, found: str) -> UnsupportedError:
    return UnsupportedError(
        f"the map of {site} does not fit half precision: {found}",
        where=site,
        limit=f"elements from {HALF.smallest_normal:.2g} to {HALF.max:.0f}, once a map and its inverse are alike",
        remedy="store this cache without a map (k4row, v4row), or calibrate on another text",
    )


def key_map(statistics: HeadStatistics) -> HeadMap:
    """The balancing map of each head's keys around their mean."""
    mean, weight = statistics.mean, statistics.gradients
    if statistics.queries is not None:
        weight = _unit(weight) + _unit(statistics.queries)
    return _balanced(statistics.square - mean[:, :, None] * mean[:, None, :], weight, mean)


def value_map(statistics: HeadStatistics) -> HeadMap:
    """The balancing map of each head's values, around zero: where most attention goes, values are near zero."""
    return _balanced(statistics.square, statistics.gradients, np.zeros_like(statistics.mean))


def _unit(moments: Array) -> Array:
    """Every head's matrix over its trace."""
    traces = np.trace(moments, axis1=1, axis2=2)
    result: Array = moments / np.where(traces > 0, traces, 1.0)[:, None, None]
    return result


def _balanced(covariance: Array, gradients: Array, centre: Array) -> HeadMap:
    """B^T and B^-T of every head (rows multiply from the left) around ``centre``, not mixed yet."""
    maps = [_balance(*pair) for pair in zip(gradients, covariance, strict=True)]
    forward, inverse, spread = (np.stack(part) for part in zip(*maps, strict=True))
    parts = (forward, inverse, -np.einsum("hd,hde->he", centre, forward), spread)
    return HeadMap(*(part.astype(np.float32) for part in parts))


def _balance(gradients: Array, covariance: Array) -> tuple[Array, Array, Array]:
    left, right = _factor(gradients), _factor(covariance)
    u, s, vt = np.linalg.svd(left.T @ right)
    root = np.sqrt(s)
    forward = left @ (u / root)
    return forward, (right @ (vt.T / root)).T, np.einsum("de,df,fe->e", forward, covariance, forward)


def _factor(moment: Array) -> Array:
    """The Cholesky factor of a moment that is made positive definite."""
    size = len(moment)
    ridge = RIDGE * np.trace(moment) / size or 1.0
    factor: Array = np.linalg.cholesky(moment + ridge * np.eye(size))
    return factor


def mixing(size: int) -> Array:
    """An orthonormal matrix of elements of about one size: Hadamard for powers of two, else the cosine basis."""
    if size & (size - 1) == 0:
        matrix = np.ones((1, 1))
        while len(matrix) < size:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return np.asarray(matrix / np.sqrt(size))
    angles = np.pi * np.outer(np.arange(size), np.arange(size) + 0.5) / size
    basis = np.cos(angles) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis)
