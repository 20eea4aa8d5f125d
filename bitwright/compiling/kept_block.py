"""The matrices of a reconstructed block in a file, so that an interrupted reconstruction goes on behind it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.passes.quantizers.matrix import RunRows

ARRAYS = ("codes", "scales", "zeros", "codebook")
FLOATS = "floats"
KINDS = (*ARRAYS, FLOATS)


@dataclass(frozen=True)
class KeptBlock:
    """What became of a block.

    Attributes:
        matrices: runs of rows by weight.
        before, after: the block's error.
        seconds: that reconstruction had taken when it was done.
    """

    matrices: Mapping[str, tuple[RunRows, ...]]
    before: float
    after: float
    seconds: float

    def write(self, path: Path) -> None:
        """The file is replaced when all of it is written."""
        from safetensors.numpy import save

        arrays = {
            f"{i}.{j}.{kind}": array
            for i, runs in enumerate(self.matrices.values())
            for j, run in enumerate(runs)
            for kind, array in _arrays(run).items()
        }
        runs = [[name, len(runs)] for name, runs in self.matrices.items()]
        numbers = {"matrices": runs, "before": self.before, "after": self.after, "seconds": self.seconds}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save(arrays, {"block": json.dumps(numbers)}))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> KeptBlock:
        """What :meth:`write` wrote.

        Raises:
            InputError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        from bitwright.passes.quantizers.matrix import QuantizedMatrix

        try:
            with safe_open(path, "numpy") as file:
                numbers, found = json.loads(file.metadata()["block"]), set(file.keys())
                matrices = {}
                for i, (name, count) in enumerate(numbers["matrices"]):
                    parts = [
                        {kind: file.get_tensor(f"{i}.{j}.{kind}") for kind in KINDS if f"{i}.{j}.{kind}" in found}
                        for j in range(count)
                    ]
                    matrices[name] = tuple(
                        part[FLOATS] if FLOATS in part else QuantizedMatrix(**{"zeros": None, **part}) for part in parts
                    )
            return cls(matrices, numbers["before"], numbers["after"], numbers["seconds"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                "a block of an interrupted reconstruction cannot be read",
                where=str(path),
                limit=str(error),
                remedy="delete the file: the block is trained again",
            ) from error


def _arrays(run: RunRows) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a run of rows, by kind."""
    if isinstance(run, np.ndarray):
        return {FLOATS: run}
    return {kind: array for kind in ARRAYS if (array := getattr(run, kind)) is not None}
