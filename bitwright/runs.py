"""Mixed schemes: a matrix whose rows are cut into runs, each with a scheme of its own.

``u4g32a8:384+u3g32a8:192`` gives the first 384 outputs of a matrix 4 bits and the 192 that follow 3 bits. Rows keep
their order: a run is a range of rows of the model's matrix (of token ids in a table).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from bitwright.errors import UsageError
from bitwright.scheme import CacheScheme, LinearScheme

ROW_MULTIPLE = 64
"""Rows of every run but the last, in a plan: whole tiles on every instruction set, so that splitting costs no bytes."""

_RUN = re.compile(r"(?P<scheme>[^:]+):(?P<rows>[0-9]+)")


@dataclass(frozen=True, order=True)
class Run:
    """Consecutive rows of a matrix with one scheme."""

    scheme: LinearScheme
    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UsageError(f"a run of {self.rows} rows", where=self.name, limit="at least 1")

    @property
    def name(self) -> str:
        return f"{self.scheme}:{self.rows}"


@dataclass(frozen=True, order=True)
class MixedScheme:
    """Schemes of the runs of one matrix, from its first row to its last."""

    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise UsageError(
                f"'{self.name}' has fewer than two runs", remedy="name the scheme alone when all rows have the same"
            )

    @classmethod
    def parse(cls, text: str) -> MixedScheme:
        runs = []
        for part in text.split("+"):
            match = _RUN.fullmatch(part.strip())
            if not match:
                raise UsageError(
                    f"'{part}' is not a run of rows",
                    where=f"'{text}'",
                    limit="scheme:rows, joined by +",
                    remedy="write it as in u4g32a8:384+u3g32a8:192",
                )
            runs.append(Run(LinearScheme.parse(match["scheme"]), int(match["rows"])))
        return cls(tuple(runs))

    @property
    def name(self) -> str:
        return "+".join(run.name for run in self.runs)

    @property
    def rows(self) -> int:
        return sum(run.rows for run in self.runs)

    def __str__(self) -> str:
        return self.name

    def why_not(self, outputs: int) -> str | None:
        """None if a matrix of ``outputs`` rows can be cut so in a plan, else the reason."""
        if self.rows != outputs:
            return f"the runs have {self.rows} rows, the matrix has {outputs}"
        odd = next((run for run in self.runs[:-1] if run.rows % ROW_MULTIPLE), None)
        if odd is not None:
            return f"{odd.name} is no multiple of {ROW_MULTIPLE} rows, as every run but the last must be"
        return None


WeightsScheme = LinearScheme | MixedScheme
Scheme = LinearScheme | MixedScheme | CacheScheme


def parse_weights(text: str) -> WeightsScheme:
    """A mixed scheme when it counts rows, else the scheme of a whole matrix."""
    return MixedScheme.parse(text) if ":" in text else LinearScheme.parse(text)


def runs_of(scheme: WeightsScheme, outputs: int) -> tuple[Run, ...]:
    """The runs of a matrix of ``outputs`` rows: one when it is not mixed."""
    return scheme.runs if isinstance(scheme, MixedScheme) else (Run(scheme, outputs),)


def scheme_of(runs: tuple[Run, ...]) -> WeightsScheme:
    """The inverse of ``runs_of``."""
    return MixedScheme(runs) if len(runs) > 1 else runs[0].scheme


def first_rows(runs: tuple[Run, ...]) -> tuple[int, ...]:
    """The row that each run begins at."""
    return tuple(accumulate((run.rows for run in runs[:-1]), initial=0))


def joined_runs(members: Sequence[tuple[WeightsScheme, int]]) -> tuple[Run, ...]:
    """The runs of matrices stacked on each other, given as (scheme, rows)."""
    joined: list[Run] = []
    for run in (run for scheme, rows in members for run in runs_of(scheme, rows)):
        if joined and joined[-1].scheme == run.scheme and not run.scheme.weight.is_codebook:
            joined[-1] = replace(run, rows=joined[-1].rows + run.rows)
        else:
            joined.append(run)
    return tuple(joined)
