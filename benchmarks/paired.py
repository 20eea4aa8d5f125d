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

from benchmarks.journal import Cell, Figures
from benchmarks.packages import environment
from benchmarks.worker import Row


@dataclass(frozen=True)
class Contestant:
    """What one worker process runs.

    Attributes:
        label: unique.
        engine: a key of ``benchmarks.worker.ENGINES``.
        path: of the model.
        packages: folder put first on the worker's PYTHONPATH.
        cache: format of the key/value cache, for engines that let one choose.
    """

    label: str
    engine: str
    path: Path
    packages: Path | None = None
    cache: str = ""


@dataclass
class Worker:
    """A running worker process. Use as a context manager: leaving it ends the process."""

    contestant: Contestant
    threads: int
    context: int
    description: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Worker:
        cache = [self.contestant.cache] if self.contestant.cache else []
        command = [sys.executable, "-m", "benchmarks.worker", self.contestant.engine, str(self.contestant.path)]
        self._process = subprocess.Popen(
            [*command, str(self.threads), str(self.context), *cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment(self.contestant.packages),
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

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def tokens_per_second(self, test: Row) -> float:
        answer = self._ask({"test": test.name, "depth": test.depth})
        return float(answer["tokens"]) / float(answer["seconds"])

    def sweep(self, depths: Sequence[int], tokens: int) -> list[float]:
        """Tokens per second at each of ascending depths, over ``tokens`` decoded tokens."""
        return [tokens / float(seconds) for seconds in self._ask({"sweep": list(depths), "tokens": tokens})["seconds"]]

    def logits(self, ids: Sequence[int]) -> list[float]:
        """Logits behind the last of ``ids``."""
        found: list[float] = self._ask({"logits": list(ids)})["logits"]
        return found


def measure(
    workers: Sequence[Worker],
    tests: Sequence[Row],
    numbers: Iterable[int],
    progress: Callable[[str], None],
    finished: Callable[[int, dict[Cell, float]], None],
) -> None:
    """Measure every (contestant, threads, test) once a round, after one round that is not counted.

    Args:
        numbers: of the rounds. Every second one goes backwards, so that nobody always runs after the same neighbour.
        finished: gets each round's number and tokens per second as soon as it is complete.
    """
    for number in (0, *numbers):
        speeds: dict[Cell, float] = {}
        for test in tests:
            for worker in workers if number % 2 == 0 else reversed(workers):
                progress(f"{f'round {number}' if number else 'warm-up'} {test.name} {worker.contestant.label}")
                speeds[worker.contestant.label, worker.threads, test] = worker.tokens_per_second(test)
        if number:
            finished(number, speeds)


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def rows(figures: Figures) -> list[dict[str, Any]]:
    return [
        {
            "contestant": label,
            "test": test.name,
            "depth": test.depth,
            "threads": threads,
            "rounds": len(values),
            "tokens_per_second": summary(list(values.values())),
        }
        for (label, threads, test), values in figures.items()
    ]


def ratios(figures: Figures, ours: str, peers: Iterable[str]) -> list[dict[str, Any]]:
    """Our speed over each peer's in the rounds that both ran in: 1.2 means 20 % faster in the median round."""
    found = []
    for peer in peers:
        for (label, threads, test), mine in figures.items():
            theirs = figures.get((peer, threads, test), {})
            shared = sorted(set(mine) & set(theirs))
            if label == ours and shared:
                ratio = summary([mine[number] / theirs[number] for number in shared])
                found.append({"peer": peer, "test": test.name, "depth": test.depth, "threads": threads, "ratio": ratio})
    return found
