"""What tests expect of a finished command."""

from __future__ import annotations

import json
import subprocess
from typing import Any


def json_of(done: subprocess.CompletedProcess[bytes]) -> Any:
    """The one JSON document on stdout of a successful command."""
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def failed(done: subprocess.CompletedProcess[bytes], code: int, text: str) -> None:
    """It ended with ``code`` and an error that holds ``text``, and printed no result."""
    assert done.returncode == code, done.stderr.decode()
    assert done.stdout == b""
    error = done.stderr.decode()
    assert error.startswith("error: ")
    assert text in error
    assert "Traceback" not in error
