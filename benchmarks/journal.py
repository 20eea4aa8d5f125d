"""Finished rounds, kept in the report's own JSON file: a benchmark that was cut off goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.worker import Row

Cell = tuple[str, int, Row]
"""A contestant's label, the number of threads, and the test."""

Figures = dict[Cell, dict[int, float]]
"""Tokens per second by the number of the round."""


@dataclass
class Journal:
    """What was measured so far.

    Attributes:
        model: digest of the reference; figures of two models never share a file.
        contestants: label to what it said of itself: a contestant that has changed starts anew.
        figures: see ``Figures``.
    """

    model: str
    contestants: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, model: str) -> Journal:
        """The journal in ``path``, empty if there is no such file."""
        if not path.exists():
            return cls(model)
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("model") != model:
            raise SystemExit(f"{path} holds figures of another model: choose another --json file, or remove this one")
        figures: Figures = {}
        for entry in document["samples"]:
            cell = (entry["contestant"], entry["threads"], Row.parse(entry["test"], entry["depth"]))
            figures[cell] = {int(number): speed for number, speed in entry["rounds"].items()}
        known = {entry["label"]: {k: v for k, v in entry.items() if k != "label"} for entry in document["contestants"]}
        return cls(model, known, figures)

    def enter(self, label: str, description: dict[str, Any]) -> bool:
        """Say who takes part. Returns False, and forgets its figures, if the contestant was another one before."""
        same = self.contestants.get(label, description) == description
        if not same:
            self.figures = {cell: values for cell, values in self.figures.items() if cell[0] != label}
        self.contestants[label] = description
        return same

    def missing(self, cells: Iterable[Cell], rounds: int) -> range:
        """Numbers of the rounds to run until every cell has ``rounds`` of them."""
        fewest = min(len(self.figures.get(cell, {})) for cell in cells)
        last = max((number for values in self.figures.values() for number in values), default=0)
        return range(last + 1, last + 1 + max(rounds - fewest, 0))

    def add(self, number: int, speeds: Mapping[Cell, float]) -> None:
        for cell, speed in speeds.items():
            self.figures.setdefault(cell, {})[number] = speed

    def samples(self) -> list[dict[str, Any]]:
        return [
            {"contestant": label, "threads": threads, "test": test.name, "depth": test.depth, "rounds": values}
            for (label, threads, test), values in self.figures.items()
        ]

    def write(self, path: Path, report: Mapping[str, Any]) -> None:
        """Replace ``path`` by the report and the samples it is made of."""
        contestants = [{"label": label, **description} for label, description in self.contestants.items()]
        document = {"model": self.model, **report, "contestants": contestants, "samples": self.samples()}
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
