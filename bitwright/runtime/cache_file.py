"""A session's cache as a file: the tokens it holds and every cache tensor, in the artifact's own tensor format.

Two more tensors say what it belongs to and that it is whole: ``artifact``, the sha256 of the library's and the weights'
digests, and ``digest``, the sha256 of that, the tokens and all cache tensors in the manifest's order.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import InputError, UsageError
from bitwright.runtime.artifact import Manifest, map_tensors
from bitwright.runtime.artifact.files import LIBRARY, WEIGHTS
from bitwright.runtime.artifact.tensorfile import Tensor, write_tensors

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".partial"
_REMEDY = "delete the file: the tokens are then read again"


def write_cache(path: Path, manifest: Manifest, tokens: Sequence[int], state: Mapping[str, np.ndarray]) -> None:
    """Write ``tokens`` and the cache tensors ``state``; the file appears whole or not at all.

    Raises:
        UsageError: the place cannot be written.
    """
    import numpy as np

    owner, ids = _owner(manifest), np.array(tokens, dtype=np.int64)
    digest = np.frombuffer(_digest(owner, ids, state), dtype=np.uint8)
    tensors: dict[str, Tensor] = {
        "artifact": np.frombuffer(owner, dtype=np.uint8),
        "digest": digest,
        "tokens": ids,
        **state,
    }
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write_tensors(file, tensors)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(
            f"the cache cannot be written: {error.strerror}", where=str(path), remedy="choose another file"
        ) from error


def read_cache(path: Path, manifest: Manifest, state: Mapping[str, np.ndarray]) -> list[int]:
    """Copy the cache tensors of a file into ``state`` and return its tokens. Nothing is copied from a bad file.

    Raises:
        InputError: the file cannot be read, is damaged, or was saved by another artifact.
    """
    tensors = map_tensors(path)
    found, owner = tensors.get("artifact"), _owner(manifest)
    if found is None or found.tobytes() != owner:
        raise InputError(
            "the cache was not saved by this artifact", where=str(path), limit="same weights, same code", remedy=_REMEDY
        )
    fits = {"artifact", "digest", "tokens", *state} == set(tensors) and all(
        (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype) for name, array in state.items()
    )
    ids = tensors["tokens"] if fits else None
    if ids is None or tensors["digest"].tobytes() != _digest(owner, ids, tensors, state):
        raise InputError("the saved cache is damaged", where=str(path), limit="its digest", remedy=_REMEDY)
    for name, array in state.items():
        array[...] = tensors[name]
    return [int(number) for number in ids]


def _owner(manifest: Manifest) -> bytes:
    return hashlib.sha256("".join(manifest.files[name].sha256 for name in (LIBRARY, WEIGHTS)).encode()).digest()


def _digest(
    owner: bytes, ids: np.ndarray, tensors: Mapping[str, np.ndarray], names: Mapping[str, np.ndarray] | None = None
) -> bytes:
    digest = hashlib.sha256(owner)
    digest.update(ids.tobytes())
    for name in tensors if names is None else names:
        digest.update(f"\0{name}\0".encode())
        digest.update(memoryview(tensors[name]).cast("B"))  # type: ignore[arg-type]
    return digest.digest()
