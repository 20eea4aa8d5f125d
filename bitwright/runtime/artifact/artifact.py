"""An artifact folder on disk: open it, verify it, check that this machine can run it."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import InputError, UnsupportedError
from bitwright.runtime.artifact import files
from bitwright.runtime.artifact.digest import sha256_file
from bitwright.runtime.artifact.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from bitwright.runtime.host import Host, detect_host

if TYPE_CHECKING:
    from bitwright.runtime.session import Session

_REMEDY = "copy the artifact again or compile the model again"


@dataclass(frozen=True)
class Artifact:
    """A folder with a valid manifest. Opening it reads the manifest only; ``verify`` reads everything."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Read the manifest of the artifact at ``path``.

        Raises:
            InputError: no such folder, no manifest, or a manifest that is malformed.
            UnsupportedError: a manifest of another schema version.
        """
        folder = Path(path).absolute()
        if not folder.is_dir():
            raise InputError(
                "there is no artifact folder", where=str(folder), remedy="make one with `bitwright compile`"
            )
        manifest = folder / files.MANIFEST
        if not manifest.exists() and not manifest.is_symlink():
            raise InputError(
                f"the folder is no artifact: it holds no {files.MANIFEST}",
                where=str(folder),
                remedy="make an artifact with `bitwright compile`, or copy it again if this is a copy",
            )
        _check_regular(manifest)
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            limit = f"at most {MAX_MANIFEST_BYTES} bytes"
            raise InputError("the manifest is too large", where=str(manifest), limit=limit, remedy=_REMEDY)
        return cls(folder, parse_manifest(_read(manifest), str(manifest)))

    @property
    def library(self) -> Path:
        return self.folder / files.LIBRARY

    @property
    def weights(self) -> Path:
        return self.folder / files.WEIGHTS

    def verify(self) -> None:
        """Check that the folder holds exactly the listed files with the listed sizes and digests.

        Raises:
            InputError: naming the first file that is missing, unexpected, no plain file, or changed.
        """
        listed = self.manifest.files
        present = {entry.name for entry in self.folder.iterdir()}
        for name in sorted(listed.keys() - present):
            raise InputError("a file of the artifact is missing", where=str(self.folder / name), remedy=_REMEDY)
        for name in sorted(present - listed.keys() - {files.MANIFEST}):
            raise InputError(
                "the artifact holds a file that its manifest does not list",
                where=str(self.folder / name),
                limit=f"listed are {', '.join(sorted(listed))}",
                remedy="remove the file",
            )
        # Sizes first: a truncated copy is found without reading gigabytes.
        for name, record in listed.items():
            _check_regular(self.folder / name)
            size = (self.folder / name).stat().st_size
            if size != record.bytes:
                raise InputError(
                    "a file of the artifact has another size",
                    where=str(self.folder / name),
                    limit=f"{record.bytes} bytes were written, {size} are there",
                    remedy=_REMEDY,
                )
        for name, record in listed.items():
            digest = _digest(self.folder / name)
            if digest != record.sha256:
                raise InputError(
                    "a file of the artifact was changed",
                    where=str(self.folder / name),
                    limit=f"sha256 {record.sha256[:16]}... was written, {digest[:16]}... is there",
                    remedy=_REMEDY,
                )

    def check_host(self, host: Host | None = None) -> None:
        """Refuse an artifact whose code this machine, or the installed TVM runtime, cannot run.

        Raises:
            UnsupportedError: another architecture, missing ISA features, or another TVM / tvm-ffi pair.
        """
        from bitwright.target import versions

        host = host or detect_host()
        target = self.manifest.target
        if target.arch != host.arch:
            raise self._foreign(f"it was compiled for {target.arch}, this machine is {host.arch}")
        lacking = host.lacks(target.features)
        if lacking:
            raise self._foreign(f"its code uses {', '.join(lacking)}, which this CPU does not have")
        built = {"tvm": self.manifest.versions.tvm, "tvm_ffi": self.manifest.versions.tvm_ffi}
        installed = versions()
        if built != installed:
            pair = " and ".join(f"{name.replace('_', '-')} {number}" for name, number in built.items())
            raise UnsupportedError(
                "the artifact was compiled with another TVM",
                where=str(self.folder),
                limit=f"compiled with {pair}; installed are {installed['tvm']} and {installed['tvm_ffi']}",
                remedy="compile the model again, or install that pair of apache-tvm and apache-tvm-ffi",
            )

    def _foreign(self, limit: str) -> UnsupportedError:
        return UnsupportedError(
            "the artifact was compiled for another machine",
            where=f"{self.folder} (target fingerprint {self.manifest.target.fingerprint})",
            limit=limit,
            remedy="compile the model on this machine, or with --target naming a feature level that it has",
        )

    def load(self, *, threads: int | None = None) -> Session:
        """Verify the artifact and start a session on it (see ``bitwright.load``)."""
        from bitwright.runtime.session import load

        return load(self.folder, threads=threads)


def _check_regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError as error:
        raise InputError("a file of the artifact is missing", where=str(path), remedy=_REMEDY) from error
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
        raise InputError(f"a file of the artifact is {kind}", where=str(path), limit="plain files only", remedy=_REMEDY)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read a file: {error.strerror}", where=str(path), remedy=_REMEDY) from error


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"cannot read a file: {error.strerror}", where=str(path), remedy=_REMEDY) from error
