"""Columns of a wider matrix as the operand of a kernel, which saves copying them out: Q, K and V of one product."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.errors import InternalError


@dataclass(frozen=True)
class Columns:
    """Columns ``first .. first + width - 1`` of a matrix whose rows have ``total`` elements."""

    width: int
    total: int
    first: int = 0

    def __post_init__(self) -> None:
        if self.first < 0 or self.width < 1 or self.first + self.width > self.total:
            raise InternalError(f"columns {self.first} to {self.first + self.width} of {self.total}")

    @classmethod
    def all(cls, width: int) -> Columns:
        """A matrix of that width."""
        return cls(width, width)
