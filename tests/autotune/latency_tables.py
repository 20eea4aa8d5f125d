"""Latency tables that follow a law, for tests that compare predictions with it."""

from __future__ import annotations

from bitwright.autotune.anchor import Anchor
from bitwright.autotune.latency import Entry, LatencyTable
from bitwright.autotune.workload import Workload
from bitwright.scheme import LinearScheme

SETS = (64 << 20, 128 << 20)
SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (3072, 1024), (49152, 576))
CALL, ROW = 5e-7, 1e-9
DIGEST = "ab" * 32


def linear(shape: tuple[int, ...], scheme: str = "u4g32a8", m: int = 1) -> Workload:
    return Workload("linear", shape, scheme, m, 2, "avx2")


def law(work: Workload, size: int) -> float:
    """A call, its rows, and bytes at 50 GB/s, 60 in the smaller set; of prompts a picosecond per multiplication."""
    outputs, inputs = work.shape
    if work.m > 1:
        return CALL + work.m * outputs * inputs * 1e-12
    nbytes = outputs * inputs * LinearScheme.parse(work.scheme).weight.storage_bytes(32, 128) / (32 * 128)
    return CALL + ROW * outputs + nbytes / (60e9 if size == SETS[0] else 50e9)


def table(schemes: tuple[str, ...] = ("u4g32a8",), noise: float = 0.0) -> LatencyTable:
    made = LatencyTable("here", "avx2", 2)
    for scheme in schemes:
        for i, shape in enumerate(SHAPES):
            for size in SETS:
                work = linear(shape, scheme)
                made.add(Entry(work, size, law(work, size) * (1 + noise * (-1) ** i)))
    return made


def anchor(tokens: int = 1, depth: int = 0, **changes: object) -> Anchor:
    fields = {
        "model": DIGEST,
        "scheme": "u4g32a8",
        "caches": "k16v16",
        "tokens": tokens,
        "depth": depth,
        "threads": 2,
        "linear": 1e-3,
        "rest": 1e-4 * tokens + 1e-6 * depth,
    }
    return Anchor(**{**fields, **changes})  # type: ignore[arg-type]
