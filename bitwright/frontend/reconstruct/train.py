"""Train the codes and scales of one block on what the float block computes.

The block reads what the quantized model has computed before it, and is to compute what the float model computes there:
errors from before are corrected where the block can. A token's error is |y' - y|^2 / |y|^2, y the float model's, since
the norms behind divide by |y|; a block's error is the mean over tokens.

Latent numbers (see ``distill/matrix.py``) and scales move by the signs of their gradients (SignRound, Cheng et al.
2023): a latent number by at most CODE_REACH steps of its grid over all of the training, a scale by at most SCALE_REACH
of itself, at a rate that falls linearly to nothing. What comes out is taken only where it lowers the error of windows
that were not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.errors import NumericalError
from bitwright.frontend.distill.matrix import FloatRows, QuantizedRows
from bitwright.frontend.distill.student import Student, initializers, replaced
from bitwright.frontend.distill.train import half_products, has_bf16_products, order

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.allowance import Allowance
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.reconstruct.blocks import Block
    from bitwright.moments import Ids

Floats = npt.NDArray[np.float32]
Rows = Mapping[str, tuple[QuantizedRows | FloatRows, ...]]
"""Name of a weight in the IR to the runs of its rows."""

CODE_REACH = 0.2
"""Steps of the grid that a latent number moves at most. With SignRound's 0.5, blocks of gptq's codes became worse."""

SCALE_REACH = 0.02
"""Share of itself that a scale moves at most."""

TINY = 1e-30
"""In the place of a smaller |y|^2."""

LARGEST_SCALE = float(np.finfo(np.float16).max)
"""Scales are stored in half precision."""


def recipe() -> str:
    """All that training depends on besides its arguments."""
    return f"1 {CODE_REACH} {SCALE_REACH} {has_bf16_products()}"


@dataclass(frozen=True)
class Reconstructed:
    """A block after training.

    Attributes:
        rows: name of a weight to the runs of its rows, with scales that half precision holds; None: training did not
            lower the error, or there was no time for it.
        before, after: error of the held-out windows, of what is taken.
    """

    rows: Rows | None
    before: float
    after: float


class Streams:
    """What the float and the quantized model compute for each window, at the place that reconstruction has come to.

    Values of all windows at one place of the graph are held, those of either model, in single precision. For each block
    in turn: :meth:`target`, then :meth:`train` if that is wanted, then :meth:`finish`.

    Args:
        interpreter: of the float model.
        windows: int64 [windows, tokens].
        held_out: how many of them, at the end, are not trained on.
    """

    def __init__(self, interpreter: Interpreter, windows: Ids, held_out: int) -> None:
        self._interpreter = interpreter
        self._windows = windows
        self._trained = len(windows) - held_out
        self._float: list[dict[str, torch.Tensor]] = [{} for _ in windows]
        self._quantized: list[dict[str, torch.Tensor]] = [{} for _ in windows]

    def begin(self, place: str | None, rows: Rows) -> None:
        """Go to the value ``place``, before which the quantized model has ``rows``."""
        if place is None:
            return
        for number in range(len(self._windows)):
            self._float[number] = {place: self._run(number, place, {})}
        with replaced(self._interpreter, self._weights(rows)):
            for number in range(len(self._windows)):
                self._quantized[number] = {place: self._run(number, place, {})}

    def target(self, block: Block) -> None:
        """Let the float model compute ``block``."""
        for number, given in enumerate(self._float):
            self._float[number] = {block.output: self._run(number, block.output, given)}

    def finish(self, block: Block, rows: Rows) -> None:
        """Let the quantized model compute ``block``, whose matrices are ``rows``."""
        with replaced(self._interpreter, self._weights(rows)):
            for number, given in enumerate(self._quantized):
                self._quantized[number] = {block.output: self._run(number, block.output, given)}

    def train(
        self, block: Block, rows: Rows, weights: Mapping[str, Floats], fixed: Rows, steps: int, allowance: Allowance
    ) -> Reconstructed:
        """Take ``steps`` training steps of one window each, fewer if the allowance ends.

        Args:
            rows: what the block's matrices start from.
            weights: what they stand for, float32 [outputs, inputs].
            fixed: matrices of the block that stay as they are.

        Raises:
            NumericalError: the error is not a number.
        """
        before = self._error(block, {**fixed, **rows})
        if allowance.over:
            return Reconstructed(None, before, before)
        student = Student(self._interpreter, {name: (runs, weights[name]) for name, runs in rows.items()})
        still = self._weights(fixed)
        reaches = student.reaches(CODE_REACH, SCALE_REACH)
        moved, allowance = 0.0, allowance.part(1)
        for done, number in enumerate(order(self._trained, steps)):
            if allowance.over:
                break
            with half_products():
                loss = self._loss(block, number, {**still, **student.weights()})
            loss.backward()  # type: ignore[no-untyped-call]
            _require_finite(float(loss.detach()), block)
            before_step, moved = moved, _moved(allowance.progress(done + 1, steps))
            descend(reaches, moved - before_step)
        found = {name: tuple(_stored(run) for run in runs) for name, runs in student.quantized().items()}
        after = self._error(block, {**fixed, **found})
        return Reconstructed(found, before, after) if after < before else Reconstructed(None, before, before)

    def _error(self, block: Block, rows: Rows) -> float:
        """Mean over the held-out windows, in single precision."""
        import torch

        weights = self._weights(rows)
        held_out = range(self._trained, len(self._windows))
        with torch.no_grad():
            error = float(np.mean([float(self._loss(block, number, weights)) for number in held_out]))
        _require_finite(error, block)
        return error

    def _loss(self, block: Block, number: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The error of a window; weights by their names in the graph."""
        wanted = self._float[number][block.output]
        with replaced(self._interpreter, weights):
            outputs = (block.output,)
            found = self._interpreter.run(self._feeds(number), outputs, self._quantized[number])[block.output]
        return relative_error(found, wanted)

    def _run(self, number: int, place: str, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        with torch.no_grad():
            return self._interpreter.run(self._feeds(number), (place,), given)[place]

    def _feeds(self, number: int) -> dict[str, torch.Tensor]:
        return self._interpreter.feeds(self._windows[number])

    def _weights(self, rows: Rows) -> dict[str, torch.Tensor]:
        return initializers(self._interpreter, {name: _matrix(runs) for name, runs in rows.items()})


def _moved(progress: float) -> float:
    """Share of its reach that a leaf has moved at most by now: its rate falls linearly with ``progress``, 0 to 1."""
    return progress * (2 - progress)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of |found - wanted|^2 / |wanted|^2; both [..., tokens, width]."""
    size = wanted.float().square().sum(-1).clamp_min(TINY)
    return ((found.float() - wanted.float()).square().sum(-1) / size).mean()


def descend(reaches: Iterable[tuple[torch.Tensor, torch.Tensor]], rate: float) -> None:
    """Move each leaf by ``rate`` times its reach against the sign of its gradient, and forget the gradient."""
    import torch

    with torch.no_grad():
        for leaf, reach in reaches:
            if leaf.grad is not None:
                leaf.sub_(leaf.grad.sign_().mul_(reach * rate))
                leaf.grad = None


def _require_finite(error: float, block: Block) -> None:
    if not math.isfinite(error):
        raise NumericalError(
            f"the error of a block is {error}",
            where=f"--reconstruct, value '{block.output}'",
            remedy="compile without it, and check the model's logits with bitwright eval",
        )


def _stored(rows: QuantizedRows | FloatRows) -> QuantizedRows | FloatRows:
    """With scales in half precision."""
    if isinstance(rows, FloatRows):
        return rows
    scales = np.clip(rows.scales, -LARGEST_SCALE, LARGEST_SCALE).astype(np.float16)
    return replace(rows, scales=scales.astype(np.float32))


def _matrix(runs: Iterable[QuantizedRows | FloatRows]) -> torch.Tensor:
    """What runs of rows stand for, float32 [outputs, inputs]."""
    import torch

    return torch.from_numpy(np.concatenate([rows.weights for rows in runs]))
