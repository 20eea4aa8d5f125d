"""The search: propose, measure, record, until the trials, the time or the candidates are used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import median
from typing import Any

from bitwright.autotune.isolation import MeasuringError
from bitwright.autotune.records import Record, RecordFile
from bitwright.autotune.space import Key, Knobs, Space, key_of
from bitwright.autotune.strategy import Strategy
from bitwright.autotune.workload import Workload
from bitwright.errors import UnsupportedError
from bitwright.target import KERNELS, versions

BATCH = 8
CONFIRMED = 3
"""The best candidates are measured a second time: the fastest of many noisy figures is partly lucky."""

WORTH = 0.985
"""A candidate replaces the default when its median time is at most this share of the default's."""


Measure = Callable[[Workload, Knobs], tuple[float, float]]
"""Builds, checks and times a candidate beside the default: (seconds, default's seconds). Raises MeasuringError."""


@dataclass(frozen=True)
class Task:
    """What is to be tuned: a workload, its search space, and the knobs that are used without tuning."""

    workload: Workload
    space: Space
    default: Knobs


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        best: the knobs to use: the default's, unless others are clearly faster.
        ratio: time of the best over the default's, in the same runs.
        seconds: median time of the best; ``default_seconds``: of the default beside all candidates.
        measured, failed: candidates.
    """

    task: Task
    best: Knobs
    ratio: float
    seconds: float
    default_seconds: float
    measured: int
    failed: int

    @property
    def gain(self) -> float:
        """How much faster than the default, as a fraction: 0.1 is 10 %."""
        return 1 / self.ratio - 1

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.task.workload.to_json(),
            "default": dict(self.task.default),
            "best": dict(self.best),
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "gain": self.gain,
            "measured": self.measured,
            "failed": self.failed,
        }


Progress = Callable[[Workload, int, int, float | None], None]
"""Called after each trial with the workload, trials done and to do, and the best ratio so far."""


def tune(
    task: Task,
    strategy: Strategy,
    measure: Measure,
    file: RecordFile,
    *,
    trials: int,
    seconds: float | None = None,
    progress: Progress = lambda *_: None,
) -> Outcome:
    """Search until the workload has ``trials`` different candidates on record, or ``seconds`` have passed.

    Records that are there already count, so that a run can be interrupted and repeated.

    Raises:
        UnsupportedError: not one candidate could be measured.
    """
    deadline = None if seconds is None else time.monotonic() + seconds

    def over() -> bool:
        return deadline is not None and time.monotonic() >= deadline

    def attempt(knobs: Knobs) -> None:
        file.append(measured_record(task.workload, knobs, measure, file.fingerprint))
        done = records_of(task.workload, file.records)
        best = min((r.ratio for r in done if r.ratio is not None), default=None)
        progress(task.workload, len({key_of(r.knobs) for r in done}), trials, best)

    while not over():
        tried = {key_of(r.knobs) for r in records_of(task.workload, file.records)}
        left = min(BATCH, trials - len(tried))
        proposed = strategy.propose(task.workload, task.space, file.records, left) if left > 0 else []
        if not proposed:
            break
        for knobs in proposed:
            if over():
                break
            attempt(knobs)
    for knobs in _to_confirm(task.workload, file.records):
        if not over():
            attempt(knobs)
    return outcome(task, file.records)


def measured_record(workload: Workload, knobs: Knobs, measure: Measure, fingerprint: str) -> Record:
    """Measure a candidate; a failure is recorded as well."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    made_by = {**versions(), "kernels": str(KERNELS)}
    try:
        seconds, default_seconds = measure(workload, knobs)
    except MeasuringError as error:
        return Record(fingerprint, workload, knobs, None, str(error), None, made_by, date)
    return Record(fingerprint, workload, knobs, seconds, None, default_seconds, made_by, date)


def records_of(workload: Workload, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.workload == workload]


def ratios(workload: Workload, records: Sequence[Record]) -> dict[Key, float]:
    """The median ratio of each measured candidate: a candidate may have been measured more than once."""
    found: dict[Key, list[float]] = {}
    for record in records_of(workload, records):
        if record.ratio is not None:
            found.setdefault(key_of(record.knobs), []).append(record.ratio)
    return {key: median(values) for key, values in found.items()}


def best_knobs(workload: Workload, records: Sequence[Record]) -> Knobs | None:
    """The fastest candidate on record if it is clearly faster than the default, else None."""
    found = ratios(workload, records)
    if not found:
        return None
    key = min(found, key=lambda key: (found[key], key))
    return dict(key) if found[key] <= WORTH else None


def _to_confirm(workload: Workload, records: Sequence[Record]) -> list[Knobs]:
    """The best few that were measured only once and look faster than the default."""
    done = [record for record in records_of(workload, records) if record.ratio is not None]
    ranked = sorted((ratio, key) for key, ratio in ratios(workload, records).items() if ratio < 1)[:CONFIRMED]
    return [dict(key) for _, key in ranked if sum(key_of(r.knobs) == key for r in done) == 1]


def outcome(task: Task, records: Sequence[Record]) -> Outcome:
    """What the records of a task say.

    Raises:
        UnsupportedError: not one candidate was measured.
    """
    done = records_of(task.workload, records)
    measured = [record for record in done if record.seconds is not None and record.default_seconds is not None]
    if not measured:
        failures = [record.failure for record in done if record.failure]
        raise UnsupportedError(
            "no candidate could be measured",
            where=str(task.workload),
            limit=f"{len(failures)} failed" + (f"; the last: {failures[-1]}" if failures else ""),
            remedy="give it more time or trials, or leave this workload to the defaults",
        )
    default_seconds = median(r.default_seconds for r in measured if r.default_seconds is not None)
    best = best_knobs(task.workload, records)
    ratio = 1.0 if best is None else ratios(task.workload, records)[key_of(best)]
    return Outcome(
        task,
        task.default if best is None else best,
        ratio,
        ratio * default_seconds,
        default_seconds,
        len({key_of(record.knobs) for record in measured}),
        len({key_of(record.knobs) for record in done if record.failure is not None}),
    )
