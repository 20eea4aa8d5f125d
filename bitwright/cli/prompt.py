"""Text that people hand to verbs, read strictly: what is not UTF-8 is an error, never silently replaced."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from bitwright.errors import InputError, UsageError

MOST_TEXT_BYTES = 1 << 30
MOST_PROMPT_BYTES = 4 << 20


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read, is longer than MOST_TEXT_BYTES or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = _read(file, MOST_TEXT_BYTES, str(path))
    except OSError as error:
        raise InputError(
            f"cannot read the text: {error.strerror}", where=str(path), remedy="name a file of UTF-8 text"
        ) from error
    return _decode(content, str(path))


def read_prompt(argument: str | None) -> str:
    """The prompt of the command line, or of stdin where there is none or it is ``-``.

    Raises:
        UsageError: there is none. InputError: stdin is longer than MOST_PROMPT_BYTES or not UTF-8.
    """
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", remedy='pass it as an argument, e.g. "Hello", or through stdin')
    return _decode(_read(sys.stdin.buffer, MOST_PROMPT_BYTES, "stdin"), "stdin")


def _read(file: BinaryIO, most: int, where: str) -> bytes:
    # In pieces: a device or a pipe that never ends must not fill the memory first.
    content = bytearray()
    while piece := file.read(min(1 << 20, most + 1 - len(content))):
        content += piece
    if len(content) > most:
        raise InputError("the text is too long", where=where, limit=f"at most {most} bytes", remedy="pass a part of it")
    return bytes(content)


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
