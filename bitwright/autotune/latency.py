"""Latency tables: how long a kernel takes on a target, measured where it was measured, else predicted.

``LatencyTable`` answers from measurements of kernels inside a decode step (``step_bench``) or, for many tokens, of
their calls. How fast weights arrive depends on how much of all weights stays in the last cache level, so each kernel
is timed in two *working sets*, twice and four times that level; a model's own size lies between them, below or above.

A kernel that was not measured is predicted by ``fit``, with the error that leaving each measurement out showed. A
table is one JSON file per target, with a digest of its content; measuring goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitwright.autotune.fit import Fit, fit
from bitwright.autotune.workload import Workload
from bitwright.errors import InputError, UnsupportedError
from bitwright.runs import parse_weights, runs_of

TABLE_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One measurement: median seconds in a working set of so many bytes."""

    workload: Workload
    working_set: int
    seconds: float


@dataclass(frozen=True)
class Latency:
    """An answer. ``relative_error``: 0 when measured, else what to expect of the prediction."""

    milliseconds: float
    measured: bool
    relative_error: float


@dataclass
class LatencyTable:
    """Measurements of one target.

    Attributes:
        fingerprint, isa: of the target.
        constants: seconds of what is no kernel: ``step`` (a call of a decode step: launch, first and last barrier).
        entries: measurements; ``add`` replaces an older one.
    """

    fingerprint: str
    isa: str
    constants: dict[str, float] = field(default_factory=dict)
    entries: dict[tuple[Workload, int], float] = field(default_factory=dict)
    _fits: dict[tuple[Any, ...], Fit] = field(default_factory=dict, repr=False)

    def add(self, entry: Entry) -> None:
        self.entries[entry.workload, entry.working_set] = entry.seconds
        self._fits.clear()

    def milliseconds(
        self, op: str, shape: tuple[int, ...], scheme: str, m: int, threads: int, *, working_set: int | None = None
    ) -> float:
        """Time of one call; see ``look_up``."""
        return self.look_up(Workload(op, shape, scheme, m, threads, self.isa), working_set).milliseconds

    def look_up(self, workload: Workload, working_set: int | None = None) -> Latency:
        """Time of one call of a kernel.

        Args:
            working_set: bytes of weights and caches that a step reads; None: much more than the last cache level.

        Raises:
            UnsupportedError: it was not measured, and too little was that is like it.
        """
        measured = self._measured(workload)
        if measured:
            return Latency(1e3 * between(measured, working_set), True, 0.0)
        if ":" in workload.scheme:
            return self._sum_of_runs(workload, working_set)
        found = self._fit(workload)
        predicted = {size: found.seconds(workload, size) for size in found.coefficients}
        return Latency(1e3 * between(predicted, working_set), False, found.relative_error)

    def _sum_of_runs(self, workload: Workload, working_set: int | None) -> Latency:
        """A product whose runs have schemes of their own: their times as if each were a call, an upper estimate."""
        runs = runs_of(parse_weights(workload.scheme), workload.shape[0])
        parts = [
            self.look_up(replace(workload, shape=(run.rows, *workload.shape[1:]), scheme=str(run.scheme)), working_set)
            for run in runs
        ]
        total = sum(part.milliseconds for part in parts)
        return Latency(total, False, sum(p.milliseconds * p.relative_error for p in parts) / total)

    def relative_errors(self) -> dict[str, float]:
        """For each kind of kernel, the mean relative error of a prediction whose own measurement was left out."""
        errors = {}
        for workload, _ in self.entries:
            try:
                errors[" ".join(map(str, family(workload)))] = self._fit(workload).relative_error
            except UnsupportedError:
                continue
        return errors

    def _measured(self, workload: Workload) -> dict[int, float]:
        return {size: seconds for (known, size), seconds in self.entries.items() if known == workload}

    def _fit(self, workload: Workload) -> Fit:
        key = family(workload)
        if key not in self._fits:
            alike = [Entry(w, size, s) for (w, size), s in sorted(self.entries.items()) if family(w) == key]
            self._fits[key] = fit([(e.workload, e.working_set, e.seconds) for e in alike], str(workload))
        return self._fits[key]

    def to_json(self) -> str:
        content = {
            "table_version": TABLE_VERSION,
            "fingerprint": self.fingerprint,
            "isa": self.isa,
            "constants": dict(sorted(self.constants.items())),
            "entries": [
                {"workload": workload.to_json(), "working_set": size, "seconds": seconds}
                for (workload, size), seconds in sorted(self.entries.items())
            ],
        }
        return json.dumps({**content, "digest": digest(content)}, indent=1) + "\n"

    @property
    def digest(self) -> str:
        """sha256 of the content: what a plan names that was computed from it."""
        found: str = json.loads(self.to_json())["digest"]
        return found

    def write(self, path: Path) -> None:
        """Replace the file; a failure leaves the old one.

        Raises:
            InputError: it cannot be written.
        """
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(self.to_json(), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(
                "the latency table cannot be written",
                where=str(path),
                limit=error.strerror,
                remedy="choose another path",
            ) from error

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Raises InputError: the file cannot be read, was changed, or is no latency table."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError("the latency table cannot be read", where=str(path), limit=str(error)) from error
        if not isinstance(document, dict) or document.get("table_version") != TABLE_VERSION:
            raise InputError(
                "the latency table has an unknown version",
                where=str(path),
                limit=f"table_version {TABLE_VERSION}",
                remedy="measure it again with this version of bitwright",
            )
        content = {name: value for name, value in document.items() if name != "digest"}
        if document.get("digest") != digest(content):
            raise InputError(
                "the latency table was changed", where=str(path), limit="its digest", remedy="measure it again"
            )
        table = cls(document["fingerprint"], document["isa"], dict(document["constants"]))
        for entry in document["entries"]:
            workload = Workload.from_json(entry["workload"], str(path))
            table.add(Entry(workload, int(entry["working_set"]), float(entry["seconds"])))
        return table

    @classmethod
    def open(cls, path: Path, fingerprint: str, isa: str) -> LatencyTable:
        """The table in a file, to be continued, or a new one.

        Raises:
            InputError: the file holds another target's.
        """
        if not path.exists():
            return cls(fingerprint, isa)
        table = cls.read(path)
        if table.fingerprint != fingerprint:
            raise InputError(
                "the latency table was measured on another target",
                where=f"{path}: fingerprint {table.fingerprint}",
                limit=f"this target is {fingerprint}",
                remedy="use another file",
            )
        return table


def family(workload: Workload) -> tuple[Any, ...]:
    """Kernels whose times follow one formula: the same code but for extents."""
    kind = "decode" if workload.m == 1 else "prefill"
    return (workload.op, workload.scheme, kind, workload.threads, workload.isa)


def between(seconds: dict[int, float], working_set: int | None) -> float:
    """Linear between the working sets that were measured, constant outside."""
    sizes = sorted(seconds)
    if working_set is None or working_set >= sizes[-1]:
        return seconds[sizes[-1]]
    if working_set <= sizes[0]:
        return seconds[sizes[0]]
    high = next(i for i, size in enumerate(sizes) if size > working_set)
    low, up = sizes[high - 1], sizes[high]
    part = (working_set - low) / (up - low)
    return (1 - part) * seconds[low] + part * seconds[up]


def digest(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def missing(
    table: LatencyTable, workloads: Iterable[Workload], working_sets: Iterable[int]
) -> list[tuple[Workload, int]]:
    """What is still to be measured, in order, each once."""
    sets = tuple(working_sets)
    wanted = dict.fromkeys((workload, size) for workload in workloads for size in sets)
    return [key for key in wanted if key not in table.entries]
