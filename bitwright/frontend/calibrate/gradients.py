"""What layers read, and gradients of the log-likelihood at what they compute, by running the float model over text.

Labels are sampled from the model's own predictions. Gradients g of log p(label) then have E[g g^T] = F, the Fisher
information at the outputs, and the divergence that a small error d of the outputs causes is 1/2 d^T F d (Amari 1998,
eq. 3.11; Kunstner et al. 2019 on why labels are sampled, not read from the text).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter
    from bitwright.moments import Ids

Floats = npt.NDArray[np.float32]

ROWS = 64
"""Rows of probabilities in double precision at a time."""


@dataclass(frozen=True)
class Observed:
    """Values of some names of the graph over all positions of all windows; caches' heads are side by side.

    Attributes:
        values: name to float32 [tokens, width].
        gradients: name to float32 [tokens, width]: of the sum over a window's positions of log p(sampled label).
        log_sums: float32 [tokens], logarithm of the sum of exponentials of the logits.
        frequency: float64 [vocabulary], mean predicted probability of each token.
    """

    values: dict[str, Floats]
    gradients: dict[str, Floats]
    log_sums: Floats
    frequency: npt.NDArray[np.float64]


def observe(
    interpreter: Interpreter,
    windows: Ids,
    values: Collection[str],
    gradients: Collection[str],
    *,
    seed: int = 0,
    tick: Callable[[int], None] | None = None,
) -> Observed:
    """Run a decoder over ``windows`` int64 [windows, tokens], and back as far as ``gradients`` need.

    Args:
        seed: of the labels; a window's labels depend on its number and the seed alone.
        tick: called with the number of windows done.
    """
    kept: dict[str, Floats] = {}
    found: dict[str, Floats] = {}
    log_sums, frequency = np.empty(windows.size, np.float32), np.zeros(1)
    for number, window in enumerate(windows):
        one = _observe_window(interpreter, window, number, values, gradients, seed)
        at = slice(number * len(window), (number + 1) * len(window))
        for arrays, parts in ((kept, one.values), (found, one.gradients)):
            for name, rows in parts.items():
                if name not in arrays:
                    arrays[name] = np.empty((windows.size, rows.shape[1]), np.float32)
                arrays[name][at] = rows
        log_sums[at] = one.log_sums
        frequency = frequency + one.frequency / len(windows)
        if tick is not None:
            tick(number + 1)
    return Observed(kept, found, log_sums, frequency)


def _observe_window(
    interpreter: Interpreter,
    window: npt.NDArray[np.int64],
    number: int,
    values: Collection[str],
    gradients: Collection[str],
    seed: int,
) -> Observed:
    """What :func:`observe` finds in window number ``number``, int64 [tokens]."""
    import torch

    kept: dict[str, Floats] = {}
    found: dict[str, Floats] = {}
    leaves: dict[str, torch.Tensor] = {}

    def see(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name in values:
            kept[name] = _rows(tensor)
        if name in gradients:
            tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            leaves[name] = tensor
        return tensor

    with interpreter.observe({*values, *gradients}, see), torch.set_grad_enabled(bool(gradients)):
        logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
        logs = torch.log_softmax(logits.float(), -1)
    log_sums = (logits[:, 0].float() - logs[:, 0]).detach().cpu().numpy()
    del logits
    probabilities = logs.detach().exp()
    sums = [part.double().sum(0).cpu().numpy() for part in _blocks(probabilities)]
    if gradients:
        labels = sampled_labels(probabilities, seed, number)
        del probabilities
        likelihood = logs.gather(1, labels[:, None]).sum()
        of_leaves = torch.autograd.grad(likelihood, list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, of_leaves, strict=True):
            found[name] = _rows(torch.zeros_like(leaves[name]) if gradient is None else gradient)
    return Observed(kept, found, log_sums, np.sum(sums, axis=0) / len(window))


def sampled_labels(probabilities: torch.Tensor, seed: int, window: int) -> torch.Tensor:
    """One label for each row of ``probabilities`` [n, vocabulary], int64 [n]."""
    import torch

    draws = torch.from_numpy(np.random.default_rng([seed, window]).random((len(probabilities), 1)))
    labels = []
    for part, drawn in zip(_blocks(probabilities), _blocks(draws), strict=True):
        cumulative = part.double().cumsum(-1)
        labels.append(torch.searchsorted(cumulative, drawn.to(cumulative) * cumulative[:, -1:]).squeeze(1))
    return torch.cat(labels).clamp_(max=probabilities.shape[1] - 1)


def _blocks(rows: torch.Tensor) -> list[torch.Tensor]:
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def _rows(tensor: torch.Tensor) -> Floats:
    """[1, n, width], or [1, heads, n, width], as float32 [n, all widths]."""
    rows = tensor.detach()[0]
    if rows.dim() == 3:
        rows = rows.transpose(0, 1).flatten(1)
    result: Floats = rows.float().cpu().numpy().copy()
    return result
