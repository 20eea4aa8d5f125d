"""Weights that stay in their safetensors files until somebody reads them, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bitwright.frontend.safetensors_header import read_header

_DTYPES = {
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F32": ir.DataType.FLOAT,
    "F64": ir.DataType.DOUBLE,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of floating-point numbers in a file.

    Attributes:
        offset: of its first byte in the file.
    """

    path: Path
    offset: int
    dtype: ir.DataType
    shape: tuple[int, ...]

    def lazy(self, name: str) -> ir.TensorProtocol:
        """A tensor that maps its part of the file whenever it is read, and only as long as somebody holds what was
        read.
        """
        return ir.LazyTensor(self._read, dtype=self.dtype, shape=ir.Shape(self.shape), name=name)

    def _read(self) -> ir.TensorProtocol:
        array = np.memmap(self.path, self.dtype.numpy(), "r", self.offset, self.shape)
        return ir.tensor(np.asarray(array), dtype=self.dtype)


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor] | None:
    """The tensors of safetensors files by name; None if some are no plain floating-point numbers.

    Raises:
        InputError: a header that is truncated, malformed, or disagrees with its file.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        entries = read_header(path)
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in entries.items():
            if entry.dtype not in _DTYPES:
                return None
            found[name] = StoredTensor(path, start + entry.begin, _DTYPES[entry.dtype], entry.shape)
    return found
