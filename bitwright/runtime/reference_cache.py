"""Keep a reference model's predictions on disk, for it is slow and the same for every scheme that is compared with
it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.runtime.evaluate import log_softmax, second_half

FORMAT = 1

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


class ReferenceCache:
    """``reference`` of ``evaluate``, computed once per (model, window): log-probabilities of the second half in
    float16.

    A value near -10 is off by at most 0.004; normalised again, that moves a KL by less than 1e-5 nats per token. A
    window of 512 tokens and 49,152 words takes 25 MB.

    Args:
        folder: where the files go; created when needed.
        model: digest of the reference model; another model's files are never read.
        logits: int64 [n] -> [n, vocab], called for windows not in the folder.
    """

    def __init__(self, folder: Path, model: str, logits: Callable[[Ids], Floats]) -> None:
        self._folder, self._model, self._logits = folder, model, logits

    def __call__(self, window: Ids) -> Floats:
        """The rows ``second_half(len(window))`` as log-probabilities, [len(window) / 2, vocab] float16."""
        path = self._folder / f"{self._key(window)}.npy"
        if not path.is_file():
            self._store(path, self._rows(window))
        # Read back even when just computed: the first evaluation equals the later ones.
        result: Floats = np.load(path)
        return result

    def _key(self, window: Ids) -> str:
        digest = hashlib.sha256(f"{FORMAT} {self._model} ".encode())
        digest.update(np.ascontiguousarray(window, dtype="<i8").tobytes())
        return digest.hexdigest()[:32]

    def _rows(self, window: Ids) -> npt.NDArray[np.float16]:
        rows = self._logits(window)[second_half(len(window))]
        # float16 ends at -65504; a token of that log-probability is as impossible as any.
        return np.stack([np.maximum(log_softmax(row), -65504.0).astype(np.float16) for row in rows])

    def _store(self, path: Path, rows: npt.NDArray[np.float16]) -> None:
        """Write beside ``path`` and rename: a file that was cut off is never read."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, rows)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
