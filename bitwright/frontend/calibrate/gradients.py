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
    import torch

    kept: dict[str, list[Floats]] = {name: [] for name in values}
    found: dict[str, list[Floats]] = {name: [] for name in gradients}
    log_sums, frequency = [], np.zeros(0)
    for number, window in enumerate(windows):
        leaves: dict[str, torch.Tensor] = {}

        def see(name: str, tensor: torch.Tensor, leaves: dict[str, torch.Tensor] = leaves) -> torch.Tensor:
            if name in kept:
                kept[name].append(_rows(tensor))
            if name in found:
                tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
                leaves[name] = tensor
            return tensor

        with interpreter.observe({*values, *gradients}, see), torch.set_grad_enabled(bool(found)):
            logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
            logs = torch.log_softmax(logits.float(), -1)
        log_sums.append((logits.float() - logs)[:, 0].detach().cpu().numpy())
        probabilities = logs.detach().exp()
        total = probabilities.double().sum(0).cpu().numpy() / windows.size
        frequency = total if not frequency.size else frequency + total
        if found:
            labels = sampled_labels(probabilities, seed, number)
            likelihood = logs.gather(1, labels[:, None]).sum()
            for name, gradient in zip(
                leaves, torch.autograd.grad(likelihood, list(leaves.values()), allow_unused=True), strict=True
            ):
                found[name].append(_rows(torch.zeros_like(leaves[name]) if gradient is None else gradient))
        if tick is not None:
            tick(number + 1)
    joined = [{name: np.concatenate(parts) for name, parts in group.items()} for group in (kept, found)]
    return Observed(joined[0], joined[1], np.concatenate(log_sums), frequency)


def sampled_labels(probabilities: torch.Tensor, seed: int, window: int) -> torch.Tensor:
    """One label for each row of ``probabilities`` [n, vocabulary], int64 [n]."""
    import torch

    draws = np.random.default_rng([seed, window]).random((len(probabilities), 1))
    cumulative = probabilities.double().cumsum(-1)
    points = torch.from_numpy(draws).to(cumulative) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points).squeeze(1).clamp_(max=probabilities.shape[1] - 1)


def _rows(tensor: torch.Tensor) -> Floats:
    """[1, n, width], or [1, heads, n, width], as float32 [n, all widths]."""
    rows = tensor.detach()[0]
    if rows.dim() == 3:
        rows = rows.transpose(0, 1).flatten(1)
    result: Floats = rows.float().cpu().numpy().copy()
    return result
