"""Checks of a GGUF file before any library opens it.

Layout (github.com/ggml-org/ggml, docs/gguf.md): magic ``GGUF``, version, counts of tensors and of key-value pairs,
the pairs, the tensors' names, sizes, types and offsets, then the data at a multiple of the alignment.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, UnsupportedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_RANK = 4
DEFAULT_ALIGNMENT = 32
SMALLEST = 24  # bytes
HEADER_LIMIT = 512 << 20  # bytes of metadata
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors of a checked file. ``shape`` counts the fastest axis first, as the format does."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


class _Cursor:
    def __init__(self, content: memoryview, where: str) -> None:
        self.content, self.where, self.at = content, where, 0

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.content) - self.at:
            raise broken(
                self.where,
                f"{what} at byte {self.at} needs {count} bytes",
                f"the file has {len(self.content) - self.at} more",
            )
        part = self.content[self.at : self.at + count]
        self.at += count
        return part

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        part = self.take(self.scalar("Q", what), what)
        try:
            return str(part, "utf-8")
        except UnicodeDecodeError as error:
            raise broken(self.where, f"{what} at byte {self.at} is not UTF-8", "UTF-8 text") from error

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            raise broken(self.where, f"{what} has type {kind}", "types 0 to 12")
        item, count = self.scalar("I", what), self.scalar("Q", what)
        if item in _SCALARS:
            code = _SCALARS[item]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code), what)))
        if item != _STRING:
            raise broken(self.where, f"{what} is an array of type {item}", "arrays of numbers or strings")
        if count * 8 > len(self.content) - self.at:
            raise broken(
                self.where, f"{what} claims {count} strings", f"the file has {len(self.content) - self.at} more bytes"
            )
        return [self.text(what) for _ in range(count)]


def read_header(path: Path) -> GgufHeader:
    """Parse and check a file's metadata and tensor table.

    Raises:
        InputError: for a file that is truncated or contradicts itself.
        UnsupportedError: for another version, or a tensor type that cannot be dequantized.
    """
    import mmap

    where = str(path)
    try:
        with path.open("rb") as file:
            if path.stat().st_size < SMALLEST:
                raise broken(where, f"{path.stat().st_size} bytes", f"a header has at least {SMALLEST}")
            # Closed with its last view: an error that is being raised may still hold one.
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _parse(content, where)
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=where, limit=error.strerror, remedy="check the path"
        ) from error


def _parse(content: memoryview, where: str) -> GgufHeader:
    cursor = _Cursor(content[:HEADER_LIMIT], where)
    if bytes(cursor.take(4, "the magic")) != MAGIC:
        raise broken(where, f"it begins with {bytes(content[:4])!r}", f"{MAGIC!r}")
    version = cursor.scalar("I", "the version")
    if version not in VERSIONS:
        raise UnsupportedError(
            f"GGUF version {version}", where=where, limit=f"versions {VERSIONS}", remedy="convert the model again"
        )
    tensor_count, pair_count = cursor.scalar("Q", "the tensor count"), cursor.scalar("Q", "the pair count")
    if tensor_count * 24 + pair_count * 13 > len(content):
        raise broken(
            where,
            f"{tensor_count} tensors and {pair_count} pairs",
            f"a file of {len(content)} bytes cannot hold them",
        )
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text("a key")
        metadata[key] = cursor.value(cursor.scalar("I", f"the type of '{key}'"), f"'{key}'")
    tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
    _check_data(metadata, tensors, cursor.at, len(content), where)
    return GgufHeader(metadata, tensors)


def _tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text("a tensor name")
    rank = cursor.scalar("I", f"the rank of '{name}'")
    if rank > MAX_RANK:
        raise broken(cursor.where, f"tensor '{name}' has rank {rank}", f"at most {MAX_RANK}")
    shape = tuple(cursor.scalar("Q", f"the shape of '{name}'") for _ in range(rank))
    return GgufTensor(
        name, shape, cursor.scalar("I", f"the type of '{name}'"), cursor.scalar("Q", f"the offset of '{name}'")
    )


def _check_data(metadata: dict[str, Any], tensors: tuple[GgufTensor, ...], end: int, size: int, where: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise broken(where, f"general.alignment is {alignment!r}", "a power of two")
    start = (end + alignment - 1) // alignment * alignment
    names = set()
    for tensor in tensors:
        spot = f"tensor '{tensor.name}' of {where}"
        if tensor.name in names:
            raise broken(spot, "its name occurs twice", "each name once")
        names.add(tensor.name)
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError) as error:
            raise UnsupportedError(
                f"tensor type {tensor.kind}", where=spot, limit="the types of the gguf package", remedy="requantize"
            ) from error
        if tensor.shape and tensor.shape[0] % block:
            raise broken(spot, f"rows of {tensor.shape[0]} numbers", f"a multiple of {block}")
        needed = math.prod(tensor.shape) // block * block_bytes
        if tensor.offset % alignment or start + tensor.offset + needed > size:
            raise broken(
                spot,
                f"data at {start + tensor.offset}, {needed} bytes",
                f"inside the file of {size} bytes, aligned to {alignment}",
            )


def broken(where: str, what: str, limit: str) -> InputError:
    """The error of a malformed file."""
    return InputError(
        f"malformed GGUF file: {what}",
        where=where,
        limit=limit,
        remedy="the file is truncated or damaged: download it again",
    )
