"""The numbers that codes stand for, in units of a group's scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwright.scheme import WeightScheme

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """The integers -zero ... levels - zero of a uniform scheme.

    Attributes:
        levels: the largest code, 2**bits - 1.
        middle: the zero point of a symmetric scheme, 2**(bits - 1).
    """

    levels: int
    middle: int

    @classmethod
    def of(cls, scheme: WeightScheme) -> Grid:
        return cls(2**scheme.bits - 1, 2 ** (scheme.bits - 1))

    def nearest(self, x: Floats, zeros: Floats | None) -> Floats:
        """The number nearest to each element of ``x``; zeros broadcast against it, None: the middle. Ties to even."""
        zero = np.float32(self.middle) if zeros is None else zeros
        result: Floats = np.rint(x)
        np.clip(result, -zero, self.levels - zero, out=result)
        return result

    def codes(self, values: Floats, zeros: Floats | None) -> npt.NDArray[np.uint8]:
        """The codes of numbers that :meth:`nearest` returned."""
        return (values + (np.float32(self.middle) if zeros is None else zeros)).astype(np.uint8)


def reciprocal(scales: Floats) -> Floats:
    """1 / scales, and 0 for a scale of 0: then every weight of the group is read as zero."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
