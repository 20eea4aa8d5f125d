"""Codes that were computed once and are kept: a folder with one file for each matrix and scheme."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InputError
from bitwright.passes.quantizers.matrix import QuantizedMatrix, Quantizer
from bitwright.passes.quantizers.ready import rows_of
from bitwright.program import Parameter
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
        if self.has(site, scheme):
            return self.read(site, scheme)
        made = compute()
        self._put(self.folder / site / f"{scheme}.safetensors", made)
        return made

    def read(self, site: str, scheme: WeightScheme) -> QuantizedMatrix:
        """The codes of a matrix that are here.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / site / f"{scheme}.safetensors"
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

    def has(self, site: str, scheme: WeightScheme) -> bool:
        return (self.folder / site / f"{scheme}.safetensors").exists()

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


@dataclass(frozen=True)
class KeptQuantizers:
    """Called with a parameter, gives a quantizer that hands out kept codes, and computes those that are missing.

    Attributes:
        codes: of the same model, made by the quantizer of ``otherwise``.
        sites: name of a weight in the model to its site's name and rows.
        otherwise: quantizes what was not kept.
    """

    codes: KeptCodes
    sites: Mapping[str, tuple[str, int]]
    otherwise: Callable[[Parameter], Quantizer]

    def __call__(self, parameter: Parameter) -> Quantizer:
        names = parameter.parts or (parameter.name,)
        compute = self.otherwise(parameter)
        if not all(name in self.sites for name in names):
            return compute

        def rows(weights: npt.NDArray[np.float32], scheme: WeightScheme, first: int) -> QuantizedMatrix:
            members, start = [], 0
            for name in names:
                site, count = self.sites[name]
                if start < first + len(weights) and first < start + count:
                    members.append((site, start))
                start += count
            if not all(self.codes.has(site, scheme) for site, _ in members):
                return compute(weights, scheme, first)
            matrices = [self.codes.read(site, scheme) for site, _ in members]
            return rows_of(matrices, first - members[0][1], len(weights))

        return rows
