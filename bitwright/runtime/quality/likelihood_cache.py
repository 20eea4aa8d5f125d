"""Keep a reference model's likelihoods on disk: one small file per context and its continuations."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitwright.errors import InputError
from bitwright.runtime.quality.likelihood import Likelihood, Likelihoods, Tokens

FORMAT = 1


class LikelihoodCache:
    """``Likelihoods`` that are computed once per (model, context, continuations), exactly as they were computed.

    Args:
        folder: where the files go; created when needed.
        model: digest of the reference model; another model's files are never read.
        compute: called for what is not in the folder.
    """

    def __init__(self, folder: Path, model: str, compute: Likelihoods) -> None:
        self._folder, self._model, self._compute = folder, model, compute

    def __call__(self, context: Tokens, continuations: Sequence[Tokens]) -> list[Likelihood]:
        path = self._folder / f"{self._key(context, continuations)}.json"
        if path.is_file():
            return _read(path)
        found = self._compute(context, continuations)
        self._store(path, json.dumps([asdict(likelihood) for likelihood in found]))
        return found

    def _key(self, context: Tokens, continuations: Sequence[Tokens]) -> str:
        question = [FORMAT, self._model, [int(i) for i in context], [[int(i) for i in c] for c in continuations]]
        return hashlib.sha256(json.dumps(question).encode()).hexdigest()[:32]

    def _store(self, path: Path, text: str) -> None:
        """Write beside ``path`` and rename: a file that was cut off is never read."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _read(path: Path) -> list[Likelihood]:
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_bytes())
        return [Likelihood(**entry) for entry in entries]
    except (ValueError, TypeError) as error:
        raise InputError(
            "a cached likelihood cannot be read",
            where=str(path),
            limit=str(error),
            remedy="delete the file: it is computed again",
        ) from error
