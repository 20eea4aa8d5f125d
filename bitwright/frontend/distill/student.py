"""The quantized model as torch sees it: the float graph with trainable matrices in the place of its weights."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitwright.frontend.distill.matrix import FloatRows, QuantizedRows, TrainableRows

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter

Floats = npt.NDArray[np.float32]


class Student:
    """A model of matrices whose quantized rows can be trained.

    Args:
        interpreter: of the float model; its own weights stay as they are.
        matrices: name of a weight in the IR, [outputs, inputs] (the graph's initializer, or that with ``.T`` if the
            graph has it transposed), to the runs of its rows and its float weights.
    """

    def __init__(
        self, interpreter: Interpreter, matrices: Mapping[str, tuple[Sequence[QuantizedRows | FloatRows], Floats]]
    ) -> None:
        self._interpreter = interpreter
        self.matrices = {name: _trainable(runs, weights) for name, (runs, weights) in matrices.items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """What the interpreter reads under each initializer's name, differentiable."""
        import torch

        matrices = {
            name: torch.cat([_weights(run) for run in runs]) if len(runs) > 1 else _weights(runs[0])
            for name, runs in self.matrices.items()
        }
        return initializers(self._interpreter, matrices)

    def log_probabilities(self, window: npt.NDArray[np.int64], weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of the next token at each position of ``window`` int64 [n], float32 [n, vocab]."""
        with replaced(self._interpreter, weights):
            return log_probabilities(self._interpreter, window)

    def groups(self, codes: float, scales: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer; see :meth:`TrainableRows.groups`."""
        return [group for run in self._trained() for group in run.groups(codes, scales)]

    def reaches(self, codes: float, scales: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Leaves and how far they may move; see :meth:`TrainableRows.reaches`."""
        return [pair for run in self._trained() for pair in run.reaches(codes, scales)]

    def leaves(self) -> list[torch.Tensor]:
        """What is trained, in an order that the matrices' decides."""
        return [leaf for run in self._trained() for leaf in (run.latent, run.scales)]

    def quantized(self) -> dict[str, tuple[QuantizedRows | FloatRows, ...]]:
        """The runs of each matrix as they are now."""
        return {
            name: tuple(run.quantized() if isinstance(run, TrainableRows) else run for run in runs)
            for name, runs in self.matrices.items()
        }

    def _trained(self) -> Iterator[TrainableRows]:
        return (run for runs in self.matrices.values() for run in runs if isinstance(run, TrainableRows))


def initializers(interpreter: Interpreter, matrices: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices [outputs, inputs] by their names in the IR, as the graph has them and by its names."""
    result = {}
    for name, matrix in matrices.items():
        transposed = name.endswith(".T") and name not in interpreter.weights
        result[name[:-2] if transposed else name] = matrix.T if transposed else matrix
    return result


@contextmanager
def replaced(interpreter: Interpreter, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside the block the interpreter reads ``weights`` in the place of its own of the same names."""
    original = interpreter.weights
    interpreter.weights = ChainMap(dict(weights), original)
    try:
        yield
    finally:
        interpreter.weights = original


def log_probabilities(interpreter: Interpreter, window: npt.NDArray[np.int64]) -> torch.Tensor:
    """Of the next token at each position of ``window`` int64 [n], float32 [n, vocab]."""
    import torch

    logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
    return torch.log_softmax(logits.float(), -1)


def _trainable(runs: Sequence[QuantizedRows | FloatRows], weights: Floats) -> list[TrainableRows | FloatRows]:
    result: list[TrainableRows | FloatRows] = []
    first = 0
    for run in runs:
        rows = weights[first : first + len(run.weights)]
        result.append(TrainableRows(run, rows) if isinstance(run, QuantizedRows) else run)
        first += len(rows)
    return result


def _weights(run: TrainableRows | FloatRows) -> torch.Tensor:
    """What rows stand for, float32 [rows, inputs], differentiable in what is trained."""
    import torch

    return run.weights() if isinstance(run, TrainableRows) else torch.from_numpy(run.weights)
