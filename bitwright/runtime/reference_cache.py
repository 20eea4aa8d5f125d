"""Keep a reference model's predictions on disk, for it is slow and the same for every scheme that is compared with
it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bitwright.runtime.divergence import log_softmax
from bitwright.runtime.evaluate import CHUNK, second_half
from bitwright.runtime.rows import Floats, Ids, Logits, RowReader

FORMAT = 2


class ReferenceCache:
    """``reference`` of ``evaluate``, computed once per (model, window): log-probabilities in float16.

    A value near -10 is off by at most 0.004; normalised again, that moves a KL by less than 1e-5 nats per token. A
    window of 512 tokens and 49,152 words takes 25 MB, all positions of one of 8,192 tokens 0.8 GB. Files are written
    and mapped piece by piece, so that no window need fit into memory.

    Args:
        folder: where the files go; created when needed.
        model: digest of the reference model; another model's files are never read.
        logits: int64 [n] -> [n, vocab], whole or in pieces, called for windows not in the folder.
        whole: keep the rows of all scored positions in place of those of the second half.
    """

    def __init__(self, folder: Path, model: str, logits: Logits, *, whole: bool = False) -> None:
        self._folder, self._model, self._logits, self._whole = folder, model, logits, whole

    def __call__(self, window: Ids) -> Floats:
        """The rows ``second_half(len(window))``, or all but the last, as log-probabilities, float16, mapped."""
        path = self._folder / f"{self._key(window)}.npy"
        if not path.is_file():
            self._store(path, window)
        # Read back even when just computed: the first evaluation equals the later ones.
        result: Floats = np.load(path, mmap_mode="r")
        return result

    def _kept(self, window: Ids) -> slice:
        return slice(0, len(window) - 1) if self._whole else second_half(len(window))

    def _key(self, window: Ids) -> str:
        digest = hashlib.sha256(f"{FORMAT} {self._model} {self._kept(window).start} ".encode())
        digest.update(np.ascontiguousarray(window, dtype="<i8").tobytes())
        return digest.hexdigest()[:32]

    def _pieces(self, window: Ids) -> Iterator[npt.NDArray[np.float16]]:
        kept = self._kept(window)
        reader = RowReader(self._logits(window), len(window), "reference", f"a window of {len(window)} tokens")
        reader.skip(kept.start)
        for start in range(kept.start, kept.stop, CHUNK):
            rows = reader.take(min(CHUNK, kept.stop - start))
            # float16 ends at -65504; a token of that log-probability is as impossible as any.
            yield np.maximum(log_softmax(rows), -65504.0).astype("<f2")

    def _store(self, path: Path, window: Ids) -> None:
        """Write beside ``path`` and rename: a file that was cut off is never read."""
        kept = self._kept(window)
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                for index, piece in enumerate(self._pieces(window)):
                    if not index:
                        _write_header(file, (kept.stop - kept.start, piece.shape[1]))
                    file.write(piece.tobytes())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _write_header(file: BinaryIO, shape: tuple[int, int]) -> None:
    header: dict[str, Any] = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
