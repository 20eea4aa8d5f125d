"""Affine maps of queries and keys that leave attention as it is and make keys easy to quantize.

Softmax ignores what is added to all scores of a query, so keys may be shifted by any vector m, and
q . (k - m) = (B^-T q) . (B (k - m)) for any invertible B. An error of the mapped key is multiplied with the mapped
query: with E[q q^T] = Q and cov(k) = K the expected error is smallest, at equal steps in every direction, where both
become the same diagonal matrix S ("balancing", Moore 1981): with Cholesky factors Q = L L^T, K = R R^T and the singular
value decomposition L^T R = U S V^T it is B = S^-1/2 U^T L^T, B^-1 = R V S^-1/2. An orthonormal matrix on top spreads S
evenly over the elements, which share one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

RIDGE = 1e-6
"""Part of the mean eigenvalue that is added to all: directions that calibration never saw stay within bounds."""


@dataclass(frozen=True)
class KeyStatistics:
    """What calibration knows of one layer's rotated queries and keys, per key/value head, without first tokens.

    Attributes:
        mean: of the keys, [kv_heads, D].
        covariance: of the keys, [kv_heads, D, D].
        queries: E[q q^T] over the queries that read the head, [kv_heads, D, D].
    """

    mean: Array
    covariance: Array
    queries: Array


@dataclass(frozen=True)
class KeyMap:
    """Maps of one layer, as rows times matrices: k' = k @ keys[h] + shift[h], q' = q @ queries[h]; float32.

    Attributes:
        keys, queries: [kv_heads, D, D].
        shift: [kv_heads, D].
    """

    keys: Floats
    queries: Floats
    shift: Floats


def key_map(statistics: KeyStatistics) -> KeyMap:
    """The balancing map of each head."""
    maps = [
        _balance(queries, covariance)
        for queries, covariance in zip(statistics.queries, statistics.covariance, strict=True)
    ]
    shift = [-mean @ keys for mean, (keys, _) in zip(statistics.mean, maps, strict=True)]
    keys, queries = (np.stack(part).astype(np.float32) for part in zip(*maps, strict=True))
    return KeyMap(keys, queries, np.stack(shift).astype(np.float32))


def _balance(queries: Array, covariance: Array) -> tuple[Array, Array]:
    """B^T and B^-1 (rows multiply from the left), the orthonormal mixing included."""
    left, right = _factor(queries), _factor(covariance)
    u, s, vt = np.linalg.svd(left.T @ right)
    mix = mixing(len(s))
    root = np.sqrt(s)
    return left @ (u / root) @ mix, right @ (vt.T / root) @ mix


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
