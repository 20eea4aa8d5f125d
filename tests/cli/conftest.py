"""The toy artifact for tests of the command line, and a way to run the command."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.toy_fixtures import artifact_path, executable, parts, toy

__all__ = ["artifact_path", "executable", "parts", "toy"]

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def process() -> Command:
    """Run ``bitwright`` in a process of its own."""

    def run(*arguments: str | bytes | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        line = [sys.executable, "-m", "bitwright.cli", *arguments]
        return subprocess.run(line, input=stdin, capture_output=True, timeout=120, check=False)

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same inside this process, which takes no second."""
    from bitwright.cli import main

    def run(*arguments: str | bytes | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        line = [os.fsdecode(argument) for argument in arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.run(line)
        return subprocess.CompletedProcess(line, code, out.buffer.getvalue(), err.buffer.getvalue())

    return run


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 3)
    return path
