"""Write the weights: a safetensors file whose tensors all start at a multiple of 64 bytes.

The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a JSON header
``{name: {"dtype", "shape", "data_offsets"}}`` that may end in spaces, then the tensors without holes between them.
Alignment therefore takes spaces at the header's end and explicit padding tensors of bytes, ``.padding.<number>``,
behind every tensor whose size is no multiple of 64. Tensors keep the order they are given in: the order kernels read
them in.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

if TYPE_CHECKING:
    import numpy as np


class Tensor(Protocol):
    """What can be written: a NumPy array, or something that becomes one of this type and shape when it is asked to."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def __array__(self) -> np.ndarray: ...


ALIGNMENT = 64
PADDING_PREFIX = ".padding."
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}
"""Safetensors names of the NumPy types that weights may have."""

_NAMES = {numpy_name: name for name, numpy_name in DTYPES.items()}


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to an open binary file, in the mapping's order, little-endian, C order.

    One tensor is an array at a time: those that are computed when asked for need not fit into memory together.

    Raises:
        ValueError: a name that is reserved for padding, a dtype the format lacks, or an array that is not what its
            tensor announced (a bug of the caller).
    """
    header, order = _header(tensors)
    file.write(header)
    for name, padding in order:
        file.write(memoryview(_plain(name, tensors[name])).cast("B"))  # type: ignore[arg-type]
        file.write(b"\0" * padding)


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the file that ``write_tensors`` writes; no tensor becomes an array."""
    header, order = _header(tensors)
    return len(header) + sum(tensors[name].nbytes + padding for name, padding in order)


def _plain(name: str, tensor: Tensor) -> np.ndarray:
    import numpy as np

    array = np.asarray(tensor)
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        announced = f"{tensor.dtype} {tensor.shape}"
        raise ValueError(f"tensor {name!r} is {array.dtype} {array.shape}, announced as {announced}")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)


def _header(tensors: Mapping[str, Tensor]) -> tuple[bytes, Iterable[tuple[str, int]]]:
    entries: dict[str, object] = {"__metadata__": {"writer": "bitwright", "alignment": str(ALIGNMENT)}}
    order = []
    offset = 0
    for number, (name, tensor) in enumerate(tensors.items()):
        if name.startswith(PADDING_PREFIX) or name == "__metadata__":
            raise ValueError(f"the tensor name {name!r} is reserved")
        if tensor.dtype.name not in _NAMES:
            raise ValueError(f"tensor {name!r}: safetensors has no type {tensor.dtype.name}")
        end = offset + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        padding = -tensor.nbytes % ALIGNMENT
        if padding:
            bounds = [end, end + padding]
            entries[f"{PADDING_PREFIX}{number}"] = {"dtype": "U8", "shape": [padding], "data_offsets": bounds}
        order.append((name, padding))
        offset = end + padding
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, order
