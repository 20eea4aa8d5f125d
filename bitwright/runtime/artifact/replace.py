"""Create a folder completely or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Yield an empty hidden sibling of ``destination`` that takes its place when the block ends well.

    Everything is on disk (fsync) before the rename. Whatever the block raises, the sibling is removed and
    ``destination`` is as it was. Only a killed process leaves a sibling ``.NAME.*.partial`` behind, which may be
    deleted. An existing ``destination`` is replaced: checking that it may be is up to the caller.

    Raises:
        OSError: the disk is full, the folder is not writable, ...
    """
    parent = destination.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=parent))
    try:
        yield folder
        # mkdtemp makes private folders; the result gets what mkdir would have given it.
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        for path in (*sorted(folder.iterdir()), folder):
            _sync(path)
        _rename(folder, destination)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _sync(parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(new: Path, destination: Path) -> None:
    if not destination.exists():
        new.rename(destination)
        return
    if _exchange(new, destination):
        shutil.rmtree(new)  # now the old content
        return
    # The file system cannot swap two names at once: for a moment neither stands under the final name.
    old = new.with_suffix(".old")
    destination.rename(old)
    try:
        new.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux ``renameat2``); False where the file system or the C library cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), str(other))
