"""The peers' own packages: taken from this environment where it has them, else installed in folders of their own.

A folder ``build/peers/NAME`` is put before everything else on a worker's PYTHONPATH. It is made again when its
requirements or its build flags change.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "llama-cpp-python"
AVX2_FLAGS = (
    "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    "-DGGML_AVX_VNNI=OFF -DGGML_AVX512=OFF"
)


@dataclass(frozen=True)
class Package:
    """What a peer needs.

    Attributes:
        name: of its folder.
        module: that is importable where it is installed.
        requirements: a file of ``requirements/``.
        options: of pip.
        flags: CMAKE_ARGS of a build from source; with flags of its own, what the environment has is no substitute.
        note: what to expect of the installation.
    """

    name: str
    module: str
    requirements: str
    options: tuple[str, ...] = ()
    flags: str = ""
    note: str = ""

    def ensure(self, root: Path = ROOT / "build" / "peers") -> Path | None:
        """The folder to put on PYTHONPATH, installed if need be; None: the environment has the package."""
        if not self.flags and importlib.util.find_spec(self.module) is not None:
            return None
        folder = root / self.name
        stamp = folder / ".installed"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != self.stamp:
            print(f"installing {self.name} into {folder}{self.note}", file=sys.stderr)
            self._install(folder)
            stamp.write_text(self.stamp, encoding="utf-8")
        return folder

    @property
    def stamp(self) -> str:
        requirements = (ROOT / "requirements" / self.requirements).read_text(encoding="utf-8")
        return f"{requirements}\n{self.flags}\n"

    def _install(self, folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        command += ["--target", str(folder), *self.options, "-r", str(ROOT / "requirements" / self.requirements)]
        done = subprocess.run(command, env={**os.environ, "CMAKE_ARGS": self.flags}, check=False)
        if done.returncode:
            raise SystemExit(
                f"{self.name} could not be installed (pip ended with {done.returncode}); leave it out of --peers"
            )


COMPILES = " (compiles C++ for minutes)"
NATIVE_LLAMA = Package("llama.cpp", "llama_cpp", "peers.txt", ("--no-deps",), note=COMPILES)
# The cache of pip knows nothing of CMAKE_ARGS: it would serve the native build.
AVX2_LLAMA = Package(
    "llama.cpp-avx2",
    "llama_cpp",
    "peers.txt",
    ("--no-deps", "--no-cache-dir", "--no-binary", LIBRARY),
    AVX2_FLAGS,
    COMPILES,
)
OPENVINO = Package("openvino", "openvino", "peers-openvino.txt", note=" (0.5 GB)")


def environment(packages: Path | None) -> dict[str, str]:
    """The environment of a process that sees ``packages`` first."""
    path = [str(packages)] if packages else []
    path += [entry for entry in (os.environ.get("PYTHONPATH"),) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)} if path else dict(os.environ)
