"""Second moments of what linear layers read: the quadratic form in which an error of their weights is measured.

A layer y = W x with weights off by D has outputs off by D x, so the expected squared error of its outputs is
E |D x|^2 = tr(D H D^T) with H = E[x x^T]. Calibration estimates H from text; a store keeps one file per activation.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitwright.errors import InputError

FORMAT = 1

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
RowMap = Callable[[Doubles], Doubles]
"""A linear map of rows [n, width]."""


def calibration_digest(model: str, windows: Ids, weights: str = "") -> str:
    """What the moments depend on, as sha256: the format, the model's digest, the windows of token ids [w, n], and how
    tokens are weighed, if they are.
    """
    digest = hashlib.sha256(f"{FORMAT} {model} {windows.shape} {weights}".encode())
    digest.update(np.ascontiguousarray(windows, dtype="<i8").tobytes())
    return digest.hexdigest()


FREQUENCIES = "frequencies of predicted tokens"
"""What a store calls the mean predicted probability of each token, float32 [vocabulary], over all windows but those
:func:`apart`."""


def apart(windows: Ids) -> Ids:
    """The first quarter of windows [w, n], one at least, which has no part in the order of tokens.

    Text that made an order says too little of what comes last in it: rare tokens are those that just this text has not.
    On other text they cost two to three times as much.
    """
    return windows[: max(1, len(windows) // 4)]


def costs_of(output: str) -> str:
    """What a store calls E[g_o**2 |x|**2], float32 [width], of an output of linear layers."""
    return f"costs of {output}"


@dataclass(frozen=True)
class MomentStore:
    """A folder of moments: ``<folder>/<digest>/<activation>.safetensors``.

    Attributes:
        folder: created when something is stored.
        digest: see :func:`calibration_digest`; moments of another calibration are never read.
    """

    folder: Path
    digest: str

    def has(self, activation: str) -> bool:
        return self.path(activation).is_file()

    def put(self, activation: str, moment: Floats) -> None:
        """Keep E[x x^T], float32 [width, width], costs [width] or frequencies [vocabulary]; a file that was cut off is
        never read."""
        from safetensors.numpy import save_file

        path = self.path(activation)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        try:
            save_file({"moment": np.ascontiguousarray(moment)}, temporary, {"activation": activation})
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def get(self, activation: str) -> Floats:
        """E[x x^T], float32 [width, width], costs [width] or frequencies [vocabulary].

        Raises:
            InputError: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.path(activation)
        try:
            moment: Floats = load_file(path)["moment"]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(
                f"the moments of activation '{activation}' cannot be read",
                where=str(path),
                limit=str(error),
                remedy="delete the file: it is computed again",
            ) from error
        return moment

    def path(self, activation: str) -> Path:
        """The activation's file, whether it exists or not."""
        # Activations have the names of graph values, which may hold any character.
        return self.folder / self.digest[:32] / f"{hashlib.sha256(activation.encode()).hexdigest()[:32]}.safetensors"


@dataclass(frozen=True)
class Moments:
    """Moments by weight.

    Attributes:
        store: where they lie.
        activations: name of a weight parameter in the IR (as ``Site.weight``) to the activation it multiplies.
        tokens: number of tokens the moments are means over.
        maps: by weight, what has become since of the rows that the weight multiplies, in order.
    """

    store: MomentStore
    activations: Mapping[str, str]
    tokens: int
    maps: Mapping[str, tuple[RowMap, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return self.store.digest

    def of(self, weight: str) -> Floats | None:
        """E[x x^T] of the weight's input, float32 [inputs, inputs]; None for a weight that multiplies nothing."""
        activation = self.activations.get(weight)
        if activation is None:
            return None
        moment = self.store.get(activation)
        if weight not in self.maps:
            return moment
        changed = moment.astype(np.float64)
        for row_map in self.maps[weight]:
            changed = row_map(row_map(changed).T)
        return changed.astype(np.float32)

    def mapped(self, maps: Mapping[str, RowMap]) -> Moments:
        """The moments after a change of the model that maps the rows which these weights multiply."""
        return replace(self, maps={**self.maps, **{name: (*self.maps.get(name, ()), maps[name]) for name in maps}})
