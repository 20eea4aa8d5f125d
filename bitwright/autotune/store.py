"""Which schedule a compilation uses: the best on record for the target, else for its instruction set, else the default.

Where nobody measured a kernel with as many threads, the nearest number of them serves.

Records are looked for in a file that the user names, or in the user's own cache and in what ships with the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bitwright.autotune.linear_task import schedule_of
from bitwright.autotune.records import Record, read_records
from bitwright.autotune.search import best_knobs, ratios
from bitwright.autotune.space import Knobs, key_of
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import ISAS, Isa
from bitwright.codegen.linear import LinearSchedule, LinearSpec, default_schedule
from bitwright.errors import InputError
from bitwright.target import KERNELS
from bitwright.user_cache import user_cache

SHIPPED = Path(__file__).parent / "shipped"


def user_folder() -> Path:
    """Where records of this user's machines are kept (see ``user_cache``)."""
    return user_cache("records")


def user_file(fingerprint: str) -> Path:
    return user_folder() / f"{fingerprint}.jsonl"


@dataclass(frozen=True)
class TunedSchedules:
    """Chooses schedules from records: ``schedules(spec, isa)``.

    Attributes:
        records: those that may be used, of this target and of others with its instruction set.
        used: workloads that a record was found for, with its knobs, as they are asked for.
    """

    records: tuple[Record, ...]
    fingerprint: str
    threads: int
    used: dict[Workload, Knobs] = field(default_factory=dict, compare=False)

    def __call__(self, spec: LinearSpec, isa: Isa) -> LinearSchedule:
        shape = (spec.outputs, spec.inputs)
        workloads = [
            Workload("linear", shape, spec.scheme.name, m, self.threads, name)
            for m in ((1,) if spec.rows == 1 else _tokens(self.records))
            for name in same_code(isa)
        ]
        if not any(ratios(workload, self.records) for workload in workloads):
            workloads = [near for workload in workloads if (near := nearest(workload, self.records)) is not None]
        for workload in workloads:
            knobs = best_schedule(workload, self.records, self.fingerprint)
            if knobs is not None:
                self.used[workload] = knobs
                return schedule_of(knobs, spec, isa)
        return default_schedule(spec, isa)

    @property
    def digest(self) -> str:
        """sha256 of what was used; empty if nothing was."""
        if not self.used:
            return ""
        lines = sorted(f"{workload} {key_of(knobs)}" for workload, knobs in self.used.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tokens(records: Iterable[Record]) -> list[int]:
    """The numbers of tokens that kernels for many were tuned at, the largest first."""
    return sorted({r.workload.m for r in records if r.workload.m > 1}, reverse=True)


def same_code(isa: Isa) -> list[str]:
    """Names of the instruction sets whose kernels are the same but for table look-ups, its own first."""
    alike = [other.name for other in ISAS if _bare(other) == _bare(isa)]
    return [isa.name, *(name for name in alike if name != isa.name)]


def _bare(isa: Isa) -> Isa:
    return replace(isa, name="", permute=False, requires=(), prefetch_level=1)


def best_schedule(workload: Workload, records: Sequence[Record], fingerprint: str) -> Knobs | None:
    """The knobs on record: of this very target if it was tuned there (None if the default won), else of its like."""
    own = [r for r in records if r.workload == workload and r.fingerprint == fingerprint]
    if ratios(workload, own):
        return best_knobs(workload, own)
    return best_knobs(workload, records)


def nearest(workload: Workload, records: Iterable[Record]) -> Workload | None:
    """The workload on the number of threads nearest to its own that it was measured with; None if it never was."""
    measured = (record.workload for record in records if record.ratio is not None)
    alike = {other for other in measured if replace(other, threads=workload.threads) == workload}
    return min(alike, key=lambda other: (abs(other.threads - workload.threads), other.threads), default=None)


def load_records(named: Path | None, isa: Isa, fingerprint: str, cpu: str) -> tuple[Record, ...]:
    """The records that a compilation may use: those of today's kernels.

    Args:
        named: the file that the user names; None: the user's cache and the package's own.
        cpu: ``Target.tune``: what ships was measured on CPUs of one kind, and says little about others.

    Raises:
        InputError: a file cannot be read, or the named one holds nothing for this instruction set.
    """
    if named is None:
        candidates = [user_file(fingerprint), *(SHIPPED / f"{cpu}-{name}.jsonl" for name in same_code(isa))]
        found = [record for path in candidates if path.exists() for record in read_records(path)]
        return tuple(record for record in found if record.is_current)
    records = tuple(r for r in read_records(named) if r.is_current and r.workload.isa in same_code(isa))
    if not records:
        raise InputError(
            "the tuning records hold nothing for this target",
            where=str(named),
            limit=f"kernels for {isa.name}, of generation {KERNELS}",
            remedy="tune for this target, or leave --records out",
        )
    return records
