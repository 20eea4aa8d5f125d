"""Weights that stay in their safetensors files until somebody reads them, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bitwright.errors import InputError
from bitwright.frontend.safetensors_header import read_header

_DTYPES = {
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F32": ir.DataType.FLOAT,
    "F64": ir.DataType.DOUBLE,
}
BLOCK = 1 << 22
"""Numbers widened at a time."""


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
        """Its numbers in single precision, read whenever they are asked for and never kept."""
        return ir.LazyTensor(lambda: self._read(name), dtype=ir.DataType.FLOAT, shape=ir.Shape(self.shape), name=name)

    def _read(self, name: str) -> ir.TensorProtocol:
        try:
            mapped = self.dtype is ir.DataType.FLOAT and 0 not in self.shape
            return ir.tensor(np.asarray(self._mapped()) if mapped else self._widened())
        except (OSError, ValueError) as error:
            raise InputError(
                f"the data of tensor '{name}' cannot be read",
                where=str(self.path),
                limit=str(error),
                remedy="the file is truncated or damaged: download it again",
            ) from error

    def _mapped(self) -> npt.NDArray[np.float32]:
        """A map of its part of the file, gone with the last reference."""
        return np.memmap(self.path, np.float32, "r", self.offset, self.shape)

    def _widened(self) -> npt.NDArray[np.float32]:
        """Block by block, so that the narrow numbers are never all in memory."""
        kind = self.dtype.numpy()
        result = np.empty(math.prod(self.shape), np.float32)
        for start in range(0, result.size, BLOCK):
            part = result[start : start + BLOCK]
            narrow = np.fromfile(self.path, kind, part.size, offset=self.offset + start * kind.itemsize)
            if narrow.size != part.size:
                raise ValueError(f"the file ends after {start + narrow.size} of {result.size} numbers")
            part[:] = narrow
        return result.reshape(self.shape)


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
