"""Checks of a safetensors file before any library opens it.

Layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data,
without gaps or overlaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.errors import InputError
from bitwright.frontend.json_file import parse_object

HEADER_LIMIT = 100_000_000  # bytes, the format's own
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header declares it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors that the file declares, checked against its size.

    Raises:
        InputError: for a header that is truncated, malformed, or disagrees with the file.
    """
    where = str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise _broken(
                    where,
                    f"a header of {length} bytes in a file of {size}",
                    f"at most {min(HEADER_LIMIT, max(size - 8, 0))} bytes",
                )
            content = file.read(length)
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=where, limit=error.strerror, remedy="check the path"
        ) from error
    declared = parse_object(content, f"header of {where}")
    declared.pop("__metadata__", None)
    entries = {name: _entry(name, found, size - 8 - length, where) for name, found in declared.items()}
    _check_layout(entries, size - 8 - length, where)
    return entries


def _entry(name: str, found: Any, data: int, where: str) -> TensorEntry:
    spot = f"tensor '{name}' of {where}"
    if not isinstance(found, dict):
        raise _broken(spot, "its entry is not an object", "dtype, shape and data_offsets")
    dtype: Any = found.get("dtype")
    shape: Any = found.get("shape")
    offsets: Any = found.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(spot, f"dtype {dtype!r}", f"one of {', '.join(BITS)}")
    if not _naturals(shape) or len(shape) > 8:
        raise _broken(spot, f"shape {str(shape)[:80]}", "at most 8 non-negative integers")
    if not _naturals(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data:
        raise _broken(
            spot, f"data_offsets {str(offsets)[:80]}", f"begin <= end <= {data}, the bytes of data in the file"
        )
    needed = math.prod(shape) * BITS[dtype] // 8
    if needed != offsets[1] - offsets[0]:
        raise _broken(spot, f"{offsets[1] - offsets[0]} bytes of data", f"{needed} bytes for {dtype} {shape}")
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 62 for x in found
    )


def _check_layout(entries: dict[str, TensorEntry], data: int, where: str) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise _broken(
                f"tensor '{name}' of {where}", f"its data begins at {entry.begin}", f"{at}: no gaps and no overlaps"
            )
        at = entry.end
    if at != data:
        raise _broken(where, f"the file holds {data} bytes of data", f"the header describes {at}")


def _broken(where: str, what: str, limit: str) -> InputError:
    return InputError(
        f"malformed safetensors file: {what}",
        where=where,
        limit=limit,
        remedy="the file is truncated or damaged: download it again",
    )
