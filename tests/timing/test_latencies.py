"""What is measured for a latency table: in turns, again where it was disturbed, and no more than is lacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitwright.autotune.latency import DISTURBED, LatencyTable
from bitwright.autotune.latency_file import read_table
from bitwright.autotune.workload import Workload
from bitwright.options import DEFAULT_CHUNK
from bitwright.runtime.breakdown import Breakdown, KernelTime
from bitwright.target import Target
from bitwright.timing import latencies

DIGEST = "ab" * 32
SCHEMES = latencies.ANCHOR_SCHEMES


class FakeSession:
    """A model whose steps take a millisecond, half of it in products; those of a disturbed one scatter."""

    context = latencies.ANCHOR_CONTEXT

    def __init__(self, name: str, disturbed: bool) -> None:
        self.name, self.disturbed = name, disturbed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What was taken apart, in order: (scheme, tokens, depth)."""
    from bitwright.runtime import profile, session

    calls: list[tuple[str, int, int]] = []

    def take_apart(found: FakeSession, tokens: int, depth: int, *_: Any, **__: Any) -> Breakdown:
        calls.append((found.name, tokens, depth))
        scale = 1 + found.disturbed * (len(calls) % 4)
        kernels = (KernelTime("linear_q", 30, 5e-4, 1), KernelTime("norm", 1, 1e-5, 1))
        return Breakdown("tg1", depth, 2, 1e-3, kernels, 1.0, (1e-3 * scale, 1e-3 * scale))

    monkeypatch.setattr(profile, "profile_step", take_apart)
    monkeypatch.setattr(session, "load", lambda path, threads: FakeSession(path.name, path.parent.name == "disturbed"))
    return calls


def test_wholes_are_measured_in_turns(asked: list[tuple[str, int, int]], tmp_path: Path) -> None:
    table, file = LatencyTable("here", "avx2", 2), tmp_path / "t.json"
    latencies.measure_anchors(table, file, {name: tmp_path / name for name in SCHEMES}, DIGEST, [2])
    turns = latencies.REPETITIONS * len(SCHEMES)
    assert [name for name, *_ in asked[:turns]] == [*SCHEMES] * latencies.REPETITIONS
    last = latencies.ANCHOR_CONTEXT - DEFAULT_CHUNK
    kinds = [(1, 0), (1, last // 4), (1, last), (DEFAULT_CHUNK // 4, 0), (DEFAULT_CHUNK, 0), (DEFAULT_CHUNK, last // 2)]
    assert list(dict.fromkeys((tokens, depth) for _, tokens, depth in asked)) == kinds
    assert len(table.anchors) == len(SCHEMES) * len(kinds)
    assert all((a.linear, a.rest, a.spread) == (5e-4, 5e-4, 0) for a in table.anchors)
    assert read_table(file) == table and not table.disturbed


def test_a_disturbed_whole_is_repeated_and_then_said(asked: list[tuple[str, int, int]], tmp_path: Path) -> None:
    table = LatencyTable("here", "avx2", 2)
    artifacts = {SCHEMES[0]: tmp_path / "disturbed" / SCHEMES[0], SCHEMES[1]: tmp_path / SCHEMES[1]}
    latencies.measure_anchors(table, tmp_path / "t.json", artifacts, DIGEST, [2])
    first = [name for name, tokens, depth in asked if (tokens, depth) == (1, 0)]
    assert first.count(SCHEMES[0]) == latencies.MOST_REPETITIONS
    assert first.count(SCHEMES[1]) == latencies.REPETITIONS
    assert len(table.disturbed) == 6 and all(SCHEMES[0] in what for what in table.disturbed)


def test_kernels_are_timed_again_only_if_they_scatter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bitwright.autotune import isolation

    asked: list[Any] = []
    spreads = iter([DISTURBED * 2, 0.01, 0.02])

    class FakeWorker:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> FakeWorker:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __call__(self, request: dict[str, Any]) -> list[tuple[float, float]] | None:
            if "prepare" in request:
                return None
            asked.append([document["scheme"] for document, _ in request["time"]])
            return [(1e-6, next(spreads)) for _ in request["time"]]

    monkeypatch.setattr(isolation, "IsolatedWorker", FakeWorker)
    monkeypatch.setattr(latencies, "working_sets", lambda target: (64 << 20,))
    table, target = LatencyTable("here", "avx2", 2), Target.parse("native")
    wanted = [Workload("linear", (64, 64), scheme, 1, 2, "avx2") for scheme in ("u3g32a8", "u4g32a8")]
    for _ in range(3):
        latencies.measure_kernels(table, tmp_path / "t.json", wanted, target, lambda text: None)
    assert asked == [["u3g32a8", "u4g32a8"], ["u3g32a8"]]
    assert not table.disturbed and table.entries[wanted[0], 64 << 20].spread == 0.02
