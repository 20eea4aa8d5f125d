"""Contestants measured in turns, so that a busy minute of the machine hits all of them, and what is said about them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.worker import Row


@dataclass(frozen=True)
class Contestant:
    """What one worker process runs: ``engine`` is ``llama.cpp`` or ``bitwright``; ``label`` is unique."""

    label: str
    engine: str
    path: Path


@dataclass
class Worker:
    """A running worker process. Use as a context manager: leaving it ends the process."""

    contestant: Contestant
    threads: int
    context: int
    description: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Worker:
        command = [sys.executable, "-m", "benchmarks.worker", self.contestant.engine, str(self.contestant.path)]
        self._process = subprocess.Popen(
            [*command, str(self.threads), str(self.context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.description = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.contestant.label} ({self.threads} threads) ended with {self._process.wait()}; see above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tokens_per_second(self, test: Row) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"test": test.name, "depth": test.depth}) + "\n")
        answer = self._answer()
        return float(answer["tokens"]) / float(answer["seconds"])


def measure(
    workers: Sequence[Worker], tests: Sequence[Row], rounds: int, progress: Callable[[str], None]
) -> dict[tuple[str, int, Row], list[float]]:
    """Tokens per second of every (contestant, threads, test), one figure a round, after one unrecorded round."""
    figures: dict[tuple[str, int, Row], list[float]] = {}
    for turn in range(rounds + 1):
        for test in tests:
            # Every second round goes backwards, so that nobody always runs after the same neighbour.
            for worker in workers if turn % 2 == 0 else reversed(workers):
                progress(
                    f"{'warm-up' if turn == 0 else f'round {turn}/{rounds}'} {test.name} {worker.contestant.label}"
                )
                speed = worker.tokens_per_second(test)
                if turn:
                    figures.setdefault((worker.contestant.label, worker.threads, test), []).append(speed)
    return figures


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def rows(figures: dict[tuple[str, int, Row], list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "contestant": label,
            "test": test.name,
            "depth": test.depth,
            "threads": threads,
            "tokens_per_second": summary(values),
        }
        for (label, threads, test), values in figures.items()
    ]


def ratios(figures: dict[tuple[str, int, Row], list[float]], ours: str, peers: Iterable[str]) -> list[dict[str, Any]]:
    """Our speed over each peer's, round by round: 1.2 means 20 % faster in the median round."""
    found = []
    for peer in peers:
        for (label, threads, test), values in figures.items():
            if label == ours:
                pairs = zip(values, figures[peer, threads, test], strict=True)
                ratio = summary([mine / theirs for mine, theirs in pairs])
                found.append({"peer": peer, "test": test.name, "depth": test.depth, "threads": threads, "ratio": ratio})
    return found
