"""Text that people hand to verbs, read strictly: what is not UTF-8 is an error, never silently replaced."""

from __future__ import annotations

import sys
from pathlib import Path

from bitwright.errors import InputError, UsageError


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the text: {error.strerror}", where=str(path)) from error
    return _decode(content, str(path))


def read_prompt(argument: str | None) -> str:
    """The prompt of the command line, or of stdin where there is none or it is ``-``.

    Raises:
        UsageError: there is none. InputError: stdin is not UTF-8.
    """
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", remedy='pass it as an argument, e.g. "Hello", or through stdin')
    return _decode(sys.stdin.buffer.read(), "stdin")


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            "the text is not valid UTF-8",
            where=f"{where}, byte {error.start}",
            limit=error.reason,
            remedy="convert the file to UTF-8",
        ) from error
