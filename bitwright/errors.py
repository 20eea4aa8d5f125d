"""The errors users see: each says what went wrong, where, which limit was hit and what to do about it.

Every class carries the exit code that the command line ends with.
"""

from __future__ import annotations

from typing import ClassVar


class BitwrightError(Exception):
    """Base of all expected errors.

    Args:
        what: one sentence saying what is wrong.
        where: the file, node, tensor or option it was found in.
        limit: the bound or rule that was broken.
        remedy: what the user can do.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self, what: str, *, where: str | None = None, limit: str | None = None, remedy: str | None = None
    ) -> None:
        self.what, self.where, self.limit, self.remedy = what, where, limit, remedy
        super().__init__(what)

    def __str__(self) -> str:
        details = (("where", self.where), ("limit", self.limit), ("remedy", self.remedy))
        return "\n".join([self.what, *(f"  {name}: {text}" for name, text in details if text)])


class UsageError(BitwrightError):
    """An option or argument that makes no sense."""

    exit_code = 2


class InputError(BitwrightError):
    """A file that is malformed, truncated, inconsistent or unreadable."""

    exit_code = 3


class InfeasibleError(BitwrightError):
    """A budget that no assignment meets."""

    exit_code = 4


class UnsupportedError(BitwrightError):
    """A valid request that this version, model or target cannot serve."""

    exit_code = 5


class NumericalError(BitwrightError):
    """A numerical check failed: the compiled result is not what the model computes."""

    exit_code = 6


class InternalError(BitwrightError):
    """A broken invariant inside bitwright."""
