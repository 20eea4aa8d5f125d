"""Read the weights: the safetensors file is mapped into memory, or copied once into huge pages.

A decode step reads every weight. In pages of 4 KiB it walks page tables all along, and hardware prefetchers stop at
every page: memory of huge pages is read faster (docs/decisions.md, 18). A file cannot be mapped so; a copy can.

The mapping of a file is private and writable: DLPack consumers want writable memory, and should a kernel ever write to
a weight, only this process would see it. Pages that nobody writes stay shared with the page cache and with others.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError
from bitwright.runtime.artifact.tensorfile import ALIGNMENT, DTYPES, PADDING_PREFIX

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_EXTENT = 2**40
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "U32": 4, "I32": 4, "F32": 4, "F64": 8}
_ITEM_BYTES |= {"U64": 8, "I64": 8}
_REMEDY = "the file is damaged: copy the artifact again or compile the model again"


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def map_tensors(path: Path, *, copy: bool = False) -> dict[str, np.ndarray]:
    """Map a safetensors file and return its tensors, without padding, in file order.

    The arrays keep the mapping alive; they are views, 64-byte aligned.

    Args:
        copy: copy the file into memory of huge pages instead.

    Raises:
        InputError: the file is truncated or its header contradicts itself, the format or the file's size.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            entries, start = _read_header(file.read(8), file.fileno(), size, path)
            mapping = _copied(file.fileno(), size) if copy else _mapped(file.fileno(), size)
    except OSError as error:
        raise InputError(f"cannot read the weights: {error.strerror}", where=str(path), remedy=_REMEDY) from error
    whole = np.frombuffer(mapping, dtype=np.uint8)
    return {
        entry.name: whole[start + entry.begin : start + entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape)
        for entry in entries
        if not entry.name.startswith(PADDING_PREFIX)
    }


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    return mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _copied(descriptor: int, size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view, done = memoryview(memory), 0
    while done < size:
        count = os.preadv(descriptor, [view[done:]], done)
        if count == 0:
            raise OSError(0, "it became shorter while it was read")
        done += count
    return memory


def _read_header(prefix: bytes, descriptor: int, size: int, path: Path) -> tuple[list[_Entry], int]:
    def bad(what: str, limit: str | None = None, where: str = "") -> InputError:
        place = f"{path}, tensor {where!r}" if where else str(path)
        return InputError(what, where=place, limit=limit, remedy=_REMEDY)

    if len(prefix) < 8:
        raise bad("the weights file is truncated", f"a safetensors file has at least 8 bytes, this one has {size}")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise bad(
            f"the weights file declares a header of {length} bytes",
            f"{size - 8} bytes follow in the file, at most {MAX_HEADER_BYTES} are read",
        )
    try:
        header = json.loads(os.pread(descriptor, length, 8), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise bad("the header of the weights file is not JSON", str(error)) from error
    if not isinstance(header, dict):
        raise bad("the header of the weights file is not a JSON object")
    header.pop("__metadata__", None)

    start = 8 + length
    entries = []
    for name, fields in header.items():
        entry, problem = _entry(name, fields)
        if entry is None:
            raise bad(f"the header entry is wrong: {problem}", where=name)
        entries.append(entry)
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise bad(f"the tensor starts at {entry.begin}", f"the tensor before it ends at {end}", entry.name)
        if (start + entry.begin) % ALIGNMENT and not entry.name.startswith(PADDING_PREFIX):
            raise bad(f"the tensor starts at byte {start + entry.begin}", f"a multiple of {ALIGNMENT}", entry.name)
        end = entry.end
    if start + end != size:
        raise bad(f"the weights file has {size} bytes", f"its header describes {start + end}")
    return entries, start


def _entry(name: str, fields: Any) -> tuple[_Entry | None, str]:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        return None, "it must have dtype, shape and data_offsets"
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return None, f"unknown dtype {dtype!r}"
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        return None, "shape and data_offsets must be lists of whole numbers"
    if len(shape) > MAX_DIMENSIONS or any(extent > MAX_EXTENT for extent in shape):
        return None, f"at most {MAX_DIMENSIONS} dimensions of at most {MAX_EXTENT}"
    begin, end = offsets
    needed = prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != needed:
        return None, f"shape {shape} of {dtype} takes {needed} bytes, data_offsets span {end - begin}"
    return _Entry(name, dtype, tuple(shape), begin, end), ""


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result
