"""Records of measured candidates: one JSON object a line, appended and flushed as they are measured.

A run that is interrupted loses at most the line that was being written: a last line without an end is ignored when
the file is read, and removed before the file is continued. Every other line must be whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TextIO

from bitwright.autotune.space import Knobs, Value
from bitwright.autotune.workload import Workload
from bitwright.errors import InputError
from bitwright.target import KERNELS

RECORD_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One candidate that was tried.

    Attributes:
        fingerprint: of the target it was tried on.
        knobs: the candidate.
        seconds: its median time; None if it failed.
        failure: why it failed, in one sentence; None if it was measured.
        default_seconds: the default candidate's time in the same run, alternated with the candidate; None if it failed.
        versions: of the compiler that built it, and "kernels", the generation of the kernels.
        date: ISO 8601, UTC.
    """

    fingerprint: str
    workload: Workload
    knobs: Knobs
    seconds: float | None
    failure: str | None
    default_seconds: float | None
    versions: Mapping[str, str]
    date: str

    def __post_init__(self) -> None:
        measured = [self.seconds, self.default_seconds]
        if self.failure is None and not all(s is not None and math.isfinite(s) and s > 0 for s in measured):
            raise InputError("a record has neither times nor a failure", where=str(self.workload))
        if self.failure is not None and any(s is not None for s in measured):
            raise InputError("a record has both a failure and times", where=str(self.workload))

    @property
    def is_current(self) -> bool:
        """It is of today's kernels: those before had other knobs, and were compared with other defaults."""
        return self.versions.get("kernels") == str(KERNELS)

    @property
    def ratio(self) -> float | None:
        """The candidate's time over the default's in the same run: below 1 is a gain. None if it failed."""
        if self.seconds is None or self.default_seconds is None:
            return None
        return self.seconds / self.default_seconds

    def to_line(self) -> str:
        document = {
            "record_version": RECORD_VERSION,
            "fingerprint": self.fingerprint,
            "workload": self.workload.to_json(),
            "knobs": dict(sorted(self.knobs.items())),
            "seconds": self.seconds,
            "failure": self.failure,
            "default_seconds": self.default_seconds,
            "versions": dict(sorted(self.versions.items())),
            "date": self.date,
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_line(cls, line: str, where: str) -> Record:
        """Raises InputError: the line is no record of this version."""
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError("a tuning record is not JSON", where=where, remedy="remove the line") from error
        if not isinstance(document, dict) or document.get("record_version") != RECORD_VERSION:
            raise InputError(
                "a tuning record has an unknown version",
                where=where,
                limit=f"record_version {RECORD_VERSION}",
                remedy="tune again with this version of bitwright",
            )
        texts = {"fingerprint": str, "knobs": dict, "versions": dict, "date": str}
        for name, kind in texts.items():
            if not isinstance(document.get(name), kind):
                raise InputError(f"a tuning record's {name} is no {kind.__name__}", where=where)
        if not all(isinstance(value, int | str) for value in document["knobs"].values()):
            raise InputError("a knob of a tuning record is neither a number nor a word", where=where)
        failure = document.get("failure")
        if not isinstance(failure, str | None):
            raise InputError("a tuning record's failure is no text", where=where)
        knobs: dict[str, Value] = document["knobs"]
        return cls(
            document["fingerprint"],
            Workload.from_json(document.get("workload"), where),
            MappingProxyType(knobs),
            _seconds(document.get("seconds"), where),
            failure,
            _seconds(document.get("default_seconds"), where),
            {str(k): str(v) for k, v in document["versions"].items()},
            document["date"],
        )


def _seconds(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise InputError("a tuning record's time is no number", where=where)


def read_records(path: Path) -> list[Record]:
    """All records of a file; a torn last line is left out.

    Raises:
        InputError: the file cannot be read, or a line is no record.
    """
    return [Record.from_line(line, f"{path}:{number}") for number, line in _whole_lines(_text(path))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError("the tuning records cannot be read", where=str(path), limit=reason) from error


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of each line that was written to its end and is not empty."""
    *lines, _torn = text.split("\n")
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


class RecordFile:
    """The records of one target, and the file that new ones are appended to. Use as a context manager.

    Raises:
        InputError: the file cannot be read or written, or holds records of another target.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.records: list[Record] = read_records(path) if path.exists() else []
        foreign = next((r for r in self.records if r.fingerprint != fingerprint), None)
        if foreign is not None:
            raise InputError(
                "the records were measured on another target",
                where=f"{path}: fingerprint {foreign.fingerprint}",
                limit=f"this target is {fingerprint}",
                remedy="write to another file; compiling may read both",
            )

    def __enter__(self) -> RecordFile:
        try:
            self._drop_torn_line()
            self._file: TextIO = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(
                "the tuning records cannot be written", where=str(self.path), limit=error.strerror
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Keep a record, on disk when this returns."""
        self._file.write(record.to_line() + "\n")
        self._file.flush()
        self.records.append(record)

    def _drop_torn_line(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)
