"""Write an artifact folder: all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitwright.errors import UsageError
from bitwright.runtime.artifact import files
from bitwright.runtime.artifact.artifact import Artifact
from bitwright.runtime.artifact.digest import sha256_file
from bitwright.runtime.artifact.manifest import (
    FileRecord,
    Interface,
    Manifest,
    ModelRecord,
    StateTensor,
    TargetRecord,
    Versions,
)
from bitwright.runtime.artifact.replace import new_folder
from bitwright.runtime.artifact.tensorfile import write_tensors
from bitwright.target import versions
from bitwright.version import __version__

if TYPE_CHECKING:
    from bitwright.runtime.artifact.tensorfile import Tensor


def write_artifact(
    destination: Path,
    *,
    kind: Literal["decoder", "encoder"],
    model: ModelRecord,
    interface: Interface,
    state: Sequence[StateTensor],
    target: TargetRecord,
    export_library: Callable[[Path], object],
    weights: Mapping[str, Tensor],
    plan: str,
    tokenizer_json: bytes | None = None,
    chat_template: str | None = None,
    generation: Mapping[str, Any] | None = None,
    report: str | None = None,
    seeds: Mapping[str, int] | None = None,
    digests: Mapping[str, str] | None = None,
    quality: Mapping[str, Any] | None = None,
    scheme: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Write a new artifact folder and return it.

    The files are written to a hidden sibling of ``destination``, flushed to disk and renamed: whatever fails, no
    partial output stays and an old artifact is untouched.

    Args:
        destination: the folder to create (with its parents).
        state: cache tensors in the order of the ``state`` tuple of the Relax functions.
        target: ``arch`` is the first part of the triple; ``features`` are ``Target.required_features``.
        export_library: writes ``model.so`` to the path it is given
            (``lambda path: executable.export_library(str(path))``).
        weights: tensors in the order of the ``weights`` tuple of the Relax functions; NumPy arrays, or
            tensors that become arrays one by one while they are written.
        plan: text of ``plan.json``.
        generation: ``generation_config.json`` with Hugging Face's keys (``eos_token_id``, ``temperature``, ...).
        digests: other inputs, e.g. of tuning records and calibration text.
        quality: figures measured after compilation. ``scheme``: a summary for people, e.g. ``{"linear": "u4g32a8"}``.
        overwrite: replace an existing artifact. Anything else that exists is never replaced.

    Raises:
        UsageError: ``destination`` exists, or cannot be written (disk full, no permission).
    """
    destination = Path(destination).absolute()
    check_destination(destination, overwrite=overwrite)
    texts: dict[str, bytes | None] = {
        files.PLAN: plan.encode(),
        files.TOKENIZER: tokenizer_json,
        files.CHAT_TEMPLATE: None if chat_template is None else chat_template.encode(),
        files.GENERATION: None if generation is None else _json(generation),
        files.REPORT: None if report is None else report.encode(),
    }
    try:
        with new_folder(destination) as folder:
            export_library(folder / files.LIBRARY)
            with (folder / files.WEIGHTS).open("wb") as file:
                write_tensors(file, weights)
            for name, text in texts.items():
                if text is not None:
                    (folder / name).write_bytes(text)
            listed = sorted(path.name for path in folder.iterdir())
            manifest = Manifest(
                kind=kind,
                model=model,
                interface=interface,
                state=tuple(state),
                weights=tuple(weights),
                target=target,
                versions=Versions(bitwright=__version__, **versions()),
                files={name: _record(folder / name) for name in listed},
                seeds=dict(seeds or {}),
                digests=dict(digests or {}),
                quality=dict(quality or {}),
                scheme=dict(scheme or {}),
            )
            (folder / files.MANIFEST).write_bytes(manifest.to_json())
    except OSError as error:
        raise UsageError(
            f"the artifact could not be written: {error.strerror or error}",
            where=str(destination),
            limit=f"{shutil.disk_usage(_existing(destination)).free} bytes are free there",
            remedy="free space or choose another output folder; nothing was left behind",
        ) from error
    return Artifact(destination, manifest)


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse a place where ``write_artifact`` would not write: to be called before long work.

    Raises:
        UsageError: ``destination`` exists and is no artifact, or is one and ``overwrite`` is False, or the folder that
            it would be made in is not writable.
    """
    try:
        destination.lstat()
    except FileNotFoundError:
        _check_parent(destination)
        return
    except OSError as error:
        raise UsageError(
            f"the output cannot be made: {error.strerror}",
            where=str(destination),
            remedy="choose another output folder",
        ) from error
    if not (destination.is_dir() and (destination / files.MANIFEST).is_file()) or destination.is_symlink():
        raise UsageError(
            "the output exists and is no artifact",
            where=str(destination),
            limit="only artifacts are replaced",
            remedy="choose another output folder or remove this one",
        )
    if not overwrite:
        raise UsageError(
            "the artifact exists already", where=str(destination), remedy="choose another folder or pass --overwrite"
        )


def _check_parent(destination: Path) -> None:
    folder = _existing(destination.absolute())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            "the output cannot be made: Permission denied", where=str(folder), remedy="choose another output folder"
        )


def _existing(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.is_dir())


def _record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
