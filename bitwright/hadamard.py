"""Orthonormal matrices of a given width whose elements have few sizes, and whose products with rows are cheap.

A *rotation* of width W = B * M * P is block-diagonal with B equal blocks, each the Kronecker product of a Hadamard
matrix of order M (1, or four times an odd number, by Paley) and Sylvester's of order P, a power of two:

    index of an element = (block * M + a) * P + b,   R = I_B x H_M x H_P,   H H^T = I.

There is one block wherever Paley's constructions reach an order that the width asks for, up to LARGEST_ORDER:
576 = 36 * 16 and 1536 = 12 * 128. Elsewhere (11008 = 43 * 256) M is 1 and the blocks are the width's odd factor.

Paley 1933, "On orthogonal matrices", lemmas 3 and 4: order q + 1 for primes q = 3 (mod 4), 2 (q + 1) for q = 1 (mod 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InternalError

LARGEST_ORDER = 64
"""Of the factor that is not a power of two: it is multiplied out, in M - 1 additions per element."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rotation:
    """One orthonormal matrix [width, width]; see the module's description.

    Attributes:
        blocks, order, power: B, M and P.
    """

    blocks: int
    order: int
    power: int

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.power < 1 or self.power & (self.power - 1) or signs(self.order) is None:
            raise InternalError(f"a rotation of {self.blocks} blocks of {self.order} x {self.power}")

    @classmethod
    def of(cls, width: int) -> Rotation:
        """The one that mixes the most elements with each other."""
        power = width & -width
        odd = width // power
        if odd > 1 and power >= 4 and signs(4 * odd) is not None:
            return cls(1, 4 * odd, power // 4)
        return cls(odd, 1, power)

    @property
    def width(self) -> int:
        return self.blocks * self.order * self.power

    @property
    def mixed(self) -> int:
        """How many elements each new element is made of."""
        return self.order * self.power

    def apply(self, rows: Array, *, transposed: bool = False) -> Array:
        """``rows`` @ R (or R^T), float64 [..., width]."""
        shape = np.shape(rows)
        x = np.asarray(rows, np.float64).reshape(-1, self.order, self.power)
        half = 1
        while half < self.power:
            pairs = x.reshape(-1, 2, half)
            x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
            half *= 2
        small = np.asarray(signs(self.order), np.float64)
        x = (small if transposed else small.T) @ x.reshape(-1, self.order, self.power)
        result: Array = (x / np.sqrt(self.mixed)).reshape(shape)
        return result

    def matrix(self) -> Array:
        """R, float64 [width, width]."""
        return self.apply(np.eye(self.width))


@lru_cache
def signs(order: int) -> tuple[tuple[int, ...], ...] | None:
    """A Hadamard matrix, rows of +-1, of an order that is 1 or four times an odd number; None if none is made here."""
    if order == 1:
        return ((1,),)
    if order > LARGEST_ORDER or order % 4 or not order // 4 % 2:
        return None
    if _is_prime(order - 1):
        return _rows(np.eye(order) + _conference(order - 1))
    if order % 8 == 4 and _is_prime(order // 2 - 1) and order // 2 % 4 == 2:
        conference = _conference(order // 2 - 1)
        diagonal = np.kron(np.eye(len(conference)), [[1, -1], [-1, -1]])
        return _rows(np.kron(conference, [[1, 1], [1, -1]]) + diagonal)
    return None


def _conference(prime: int) -> Array:
    """C [q + 1, q + 1] with zeros on its diagonal, +-1 elsewhere, and C C^T = q I."""
    residues = {i * i % prime for i in range(1, prime)}
    jacobsthal = [
        [0 if i == j else 1 if (i - j) % prime in residues else -1 for j in range(prime)] for i in range(prime)
    ]
    c = np.zeros((prime + 1, prime + 1))
    c[1:, 1:] = jacobsthal
    c[0, 1:] = 1
    c[1:, 0] = 1 if prime % 4 == 1 else -1
    return c


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, isqrt(n) + 1))


def _rows(matrix: Array) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(x) for x in row) for row in matrix)
