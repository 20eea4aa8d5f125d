"""One entry of a study: a strategy's answer to a budget on a target, and what was measured of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.drawing import write_whole
from bitwright.errors import InputError
from bitwright.plan import Plan
from bitwright.study.strategy import Strategy


@dataclass(frozen=True)
class Cell:
    """What was asked and answered.

    Attributes:
        solved_for, target: names of the target it was solved for and of the one it is compiled and measured on.
        unit: of the losses that the plan predicts.
        plan: None when no plan fits; then ``infeasible`` says why.
    """

    strategy: Strategy
    max_bytes: int
    solved_for: str
    target: str
    plan: Plan | None
    unit: str
    infeasible: str = ""

    @property
    def name(self) -> str:
        """Of its files."""
        foreign = "" if self.solved_for == self.target else f"-on-{self.target}"
        return f"{self.strategy.name}@{self.max_bytes}-{self.solved_for}{foreign}"

    @property
    def digest(self) -> str:
        """sha256 of the plan's schemes: equal ones are compiled and measured once."""
        assert self.plan is not None
        return sha256({site: scheme.name for site, scheme in self.plan.schemes.items()})


@dataclass(frozen=True)
class Measurements:
    """Measurements in a folder, one file each, found again by the key that says of what and how, completely."""

    folder: Path

    def find(self, key: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What was found for a key, None if it was not measured yet.

        Raises:
            InputError: the file is damaged.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            value: Mapping[str, Any] = document["value"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "a measurement cannot be read", where=str(path), limit=str(error), remedy="delete the file"
            ) from error
        return value

    def put(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keep what was found; a file that was cut off is never read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(key), encode({"key": dict(key), "value": dict(value)}))

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{sha256(key)[:24]}.json"


def sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def encode(document: Any) -> bytes:
    """JSON as it stands in files."""
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
