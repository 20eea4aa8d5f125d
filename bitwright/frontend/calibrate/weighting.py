"""Second moments in which a token counts by how much the model's answers depend on what the layer makes of it.

The KL divergence of a model whose layer is off by D is, to second order, half of the quadratic form of D with the
Fisher information F = E[g g^T kron x x^T], where x is the layer's input at a token and g the gradient of the
log-likelihood in its output there, for answers drawn from the model itself. H = E[x x^T] takes g g^T to be the
identity at every token; |g|**2 times that keeps what depends on the token and lets all outputs of a layer count the
same (Kim et al. 2025, "GuidedQuant", with one group of outputs). Energies of single tokens are hundreds of times the
mean, so that few tokens would decide. The weight of a token is therefore |g|, which was measured to be better:
H = E[|g| x x^T] / E|g|. Layers that read the same activation share its moment: |g|**2 is summed over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bitwright.frontend.calibrate.gradients import sampled_labels

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter
    from bitwright.moments import Ids

    Tensors = dict[str, torch.Tensor]

SEED = 0


def weighted_moments(
    interpreter: Interpreter, windows: Ids, outputs: Mapping[str, tuple[str, ...]], tick: Callable[[int], None]
) -> Tensors:
    """H [width, width] of each activation over ``windows`` (int64 [windows, tokens]) of a decoder.

    One forward and one backward pass per window; the activations of a window are in memory at once.

    Args:
        outputs: the activations in graph order, each with the outputs of the products that read it.
        tick: called with the number of windows done.
    """
    import torch

    sums: Tensors = {}
    masses: dict[str, float] = dict.fromkeys(outputs, 0.0)
    for number, window in enumerate(windows):
        for name, (rows, size) in _window(interpreter, window, outputs, number).items():
            weighted = rows * size[:, None]
            sums[name] = sums[name].addmm_(weighted.T, rows) if name in sums else weighted.T @ rows
            masses[name] += float(size.sum(dtype=torch.float64))
        tick(number + 1)
    return {name: total.div_(masses[name]) if masses[name] else total for name, total in sums.items()}


def _window(
    interpreter: Interpreter, window: Ids, outputs: Mapping[str, tuple[str, ...]], number: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Inputs [tokens, width] and |g| [tokens] of each activation."""
    import torch

    owner = {output: activation for activation, found in outputs.items() for output in found}
    first = next(iter(outputs))
    inputs: Tensors = {}
    energies: Tensors = {}

    def add(activation: str, gradient: torch.Tensor) -> None:
        energy = gradient.reshape(-1, gradient.shape[-1]).square().sum(-1)
        energies[activation] = energies[activation] + energy if activation in energies else energy

    def visit(name: str, value: torch.Tensor) -> torch.Tensor | None:
        if name in owner:
            value.register_hook(lambda gradient: add(owner[name], gradient))  # type: ignore[no-untyped-call]
            return None
        inputs[name] = value.detach().reshape(-1, value.shape[-1])
        # Nothing before the first of them needs a gradient: autograd's graph begins here.
        return value.detach().requires_grad_() if name == first else None

    with interpreter.observe([*outputs, *owner], visit), torch.enable_grad():
        logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
        answers = sampled_labels(logits.detach().float().softmax(-1), SEED, number)
        torch.nn.functional.cross_entropy(logits, answers, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return {name: (rows, energies[name].sqrt()) for name, rows in inputs.items()}
