"""A cost function with the shape of real ones: interacting knobs, cliffs, failures; and a measure that evaluates it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from bitwright.autotune.isolation import MeasuringError
from bitwright.autotune.records import Record, RecordFile
from bitwright.autotune.search import Task
from bitwright.autotune.space import Knobs, Space
from bitwright.autotune.strategy import Strategy
from bitwright.autotune.workload import Workload
from bitwright.target import KERNELS, versions

SPACE = Space.of(
    {
        "blocks": (1, 2, 3, 4, 6, 8),
        "unroll": (1, 2, 4, 8),
        "prefetch": (0, 256, 512, 1024, 2048, 4096),
        "split": (1, 2, 4),
        "order": ("rows", "columns"),
    }
)
MADE_BY = {**versions(), "kernels": str(KERNELS)}
DEFAULT: Knobs = {"blocks": 4, "unroll": 1, "prefetch": 0, "split": 1, "order": "rows"}


def workload(outputs: int = 1536, inputs: int = 576, scheme: str = "u4g32a8", m: int = 1) -> Workload:
    return Workload("linear", (outputs, inputs), scheme, m, 2, "avx512vnni")


def cost(work: Workload, knobs: Knobs) -> float:
    """Seconds. Candidates with many registers do not build."""
    blocks, unroll, prefetch, split = (int(knobs[name]) for name in ("blocks", "unroll", "prefetch", "split"))
    if blocks * unroll > 32:
        raise MeasuringError("too many registers")
    outputs, inputs = work.shape
    padded = math.ceil(outputs / (16 * blocks)) * 16 * blocks / outputs
    spills = 1 + 0.08 * max(blocks * unroll - 16, 0)
    loads = 1 + 0.5 / blocks + 0.2 / unroll
    ahead = 1 + 0.05 * abs(math.log2(prefetch + 128) - math.log2(inputs + 300))
    parts = 1 + 0.1 * abs(split - (2 if inputs > 1000 else 1))
    order = 1.06 if (knobs["order"] == "rows") == (outputs > inputs) else 1.0
    return outputs * inputs * 0.5 / 40e9 * padded * spills * loads * ahead * parts * order


@dataclass
class Measured:
    """A measure that counts its calls."""

    calls: list[Knobs] = field(default_factory=list)

    def __call__(self, work: Workload, knobs: Knobs) -> tuple[float, float]:
        self.calls.append(knobs)
        return cost(work, knobs), cost(work, DEFAULT)


def task(work: Workload | None = None) -> Task:
    return Task(work or workload(), SPACE, DEFAULT)


def record(work: Workload, knobs: Knobs, fingerprint: str = "here", ratio: float | None = None) -> Record:
    """What measuring leaves behind; ``ratio`` instead of the cost function's."""
    date = "2026-01-01T00:00:00+00:00"
    try:
        seconds = cost(work, knobs) if ratio is None else ratio * 1e-5
    except MeasuringError as error:
        return Record(fingerprint, work, knobs, None, str(error), None, MADE_BY, date)
    default = cost(work, DEFAULT) if ratio is None else 1e-5
    return Record(fingerprint, work, knobs, seconds, None, default, MADE_BY, date)


def best_after(strategy: Strategy, path: Path, trials: int, work: Workload) -> float:
    """The best cost among the first ``trials`` candidates that a strategy proposes."""
    from bitwright.autotune.search import tune

    measure = Measured()
    with RecordFile(path, "here") as file:
        tune(task(work), strategy, measure, file, trials=trials)
        return min(r.seconds for r in file.records if r.seconds is not None and r.workload == work)
