"""The numbers that codes stand for, in units of a group's scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitwright.passes.quantizers.codebook import BIN_MIDDLES, bins_of, codes_of
from bitwright.scheme import WeightScheme

Floats = npt.NDArray[np.float32]


class Grid(Protocol):
    """A set of numbers. Zero points broadcast against the other argument; None where a grid has none."""

    @property
    def symmetric(self) -> bool:
        """No zero points."""

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest number (of a grid without zero points)."""

    @property
    def codebook(self) -> npt.NDArray[np.int8] | None:
        """What codes look up."""

    def nearest(self, x: Floats, zeros: Floats | None) -> Floats:
        """The number nearest to each element of ``x``."""

    def codes(self, values: Floats, zeros: Floats | None) -> npt.NDArray[np.uint8]:
        """The codes of numbers that :meth:`nearest` returned."""


@dataclass(frozen=True)
class Integers:
    """The integers -zero ... levels - zero of a uniform scheme; without zero points, the zero is the middle code."""

    bits: int
    symmetric: bool
    codebook: None = None

    @classmethod
    def of(cls, scheme: WeightScheme) -> Integers:
        return cls(scheme.bits, scheme.symmetric)

    @property
    def levels(self) -> int:
        """The largest code."""
        return int(2**self.bits) - 1

    @property
    def middle(self) -> int:
        return int(2 ** (self.bits - 1))

    @property
    def ends(self) -> tuple[float, float]:
        return -self.middle, self.middle - 1

    def nearest(self, x: Floats, zeros: Floats | None) -> Floats:
        zero = np.float32(self.middle) if zeros is None else zeros
        result: Floats = np.rint(x)
        np.clip(result, -zero, self.levels - zero, out=result)
        return result

    def codes(self, values: Floats, zeros: Floats | None) -> npt.NDArray[np.uint8]:
        return (values + (np.float32(self.middle) if zeros is None else zeros)).astype(np.uint8)


@dataclass(frozen=True)
class LookedUp:
    """The ascending int8 values of a codebook."""

    codebook: npt.NDArray[np.int8]
    symmetric: bool = True
    _of_bin: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        of_bin = self.codebook.astype(np.float32)[codes_of(BIN_MIDDLES, self.codebook)]
        object.__setattr__(self, "_of_bin", of_bin)

    @property
    def ends(self) -> tuple[float, float]:
        return float(self.codebook[0]), float(self.codebook[-1])

    def nearest(self, x: Floats, zeros: Floats | None) -> Floats:
        return self._of_bin.take(bins_of(x), mode="clip")

    def codes(self, values: Floats, zeros: Floats | None) -> npt.NDArray[np.uint8]:
        return codes_of(values, self.codebook)


def reciprocal(scales: Floats) -> Floats:
    """1 / scales, and 0 for a scale of 0: then every weight of the group is read as zero."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
