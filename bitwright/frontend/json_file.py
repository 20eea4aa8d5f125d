"""Reading a JSON object from a file of a model, with a bound on its size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitwright.errors import InputError

JSON_LIMIT = 256 << 20  # bytes; the largest tokenizers take some tens of MiB


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``content``.

    Raises:
        InputError: for anything that is not UTF-8, not JSON, nested too deeply or not an object.
    """
    try:
        parsed = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            "the file is not valid JSON", where=where, limit=str(error), remedy="download or write the file again"
        ) from error
    if not isinstance(parsed, dict):
        raise InputError(
            f"the file holds a JSON {type(parsed).__name__}",
            where=where,
            limit="a JSON object",
            remedy="download the file again",
        )
    return parsed


def read_bytes(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """Content of a file of at most ``limit`` bytes.

    Raises:
        InputError: where it cannot be read or is larger.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(
                f"the file has {size} bytes",
                where=str(path),
                limit=f"{limit} bytes",
                remedy="check that this is the right file",
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            limit=error.strerror,
            remedy="check the path and its permissions",
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file at ``path``."""
    return parse_object(read_bytes(path), str(path))


def optional_object(path: Path) -> dict[str, Any]:
    """The same, or an empty object where there is no such file."""
    return read_object(path) if path.exists() else {}
