"""Codes that were computed once and are kept: a folder with one file for each matrix and scheme."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bitwright.errors import InputError
from bitwright.passes.quantizers.matrix import QuantizedMatrix
from bitwright.scheme import WeightScheme


@dataclass(frozen=True)
class KeptCodes:
    """``<folder>/<site>/<scheme>.safetensors``; whoever makes the folder answers for one model and one quantizer."""

    folder: Path

    def get(self, site: str, scheme: WeightScheme, compute: Callable[[], QuantizedMatrix]) -> QuantizedMatrix:
        """The codes of a matrix, computed and kept if they are not here.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / site / f"{scheme}.safetensors"
        if not path.exists():
            made = compute()
            self._put(path, made)
            return made
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            return QuantizedMatrix(arrays["codes"], arrays["scales"], arrays.get("zeros"), arrays.get("codebook"))
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(
                f"the codes of {site} cannot be read",
                where=str(path),
                limit=str(error),
                remedy="delete the file: it is computed again",
            ) from error

    def _put(self, path: Path, matrix: QuantizedMatrix) -> None:
        from safetensors.numpy import save

        parts: dict[str, npt.NDArray[Any] | None] = {"codes": matrix.codes, "scales": matrix.scales}
        parts |= {"zeros": matrix.zeros, "codebook": matrix.codebook}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save({name: array for name, array in parts.items() if array is not None}))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
