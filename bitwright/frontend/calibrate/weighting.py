"""Second moments in which a token counts by how much the model's answers depend on what the layer makes of it.

The KL divergence of a model whose layer is off by D is, to second order, half of the quadratic form of D with the
Fisher information F = E[g g^T kron x x^T], where x is the layer's input at a token and g the gradient of the
log-likelihood in its output there, for answers drawn from the model itself. H = E[x x^T] takes g g^T to be the
identity at every token; |g|**2 times that keeps what depends on the token and lets all outputs of a layer count the
same (Kim et al. 2025, "GuidedQuant", with one group of outputs). Energies of single tokens are hundreds of times the
mean, so that few tokens would decide. The weight of a token is therefore |g|, which was measured to be better:
H = E[|g| x x^T] / E|g|. Layers that read the same activation share its moment: |g|**2 is summed over them.

The same passes find what an error of each output costs, E[g_o**2 |x|**2], by which outputs can be put in order, and
how often the model predicts each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitwright.frontend.calibrate.gradients import sampled_labels
from bitwright.moments import apart

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter
    from bitwright.moments import Ids

    Tensors = dict[str, torch.Tensor]

SEED = 0


@dataclass(frozen=True)
class Weighted:
    """What passes with gradients find.

    Attributes:
        moments: H float32 [width, width] by activation.
        costs: E[g_o**2 |x|**2], float32 [width], by output.
        frequencies: mean predicted probability of each token, float32 [vocabulary], over windows behind those apart.
    """

    moments: Tensors
    costs: Tensors
    frequencies: torch.Tensor


def weighted_moments(
    interpreter: Interpreter, windows: Ids, outputs: Mapping[str, tuple[str, ...]], tick: Callable[[int], None]
) -> Weighted:
    """H of each activation, and costs of each output, over ``windows`` (int64 [windows, tokens]) of a decoder.

    One forward and one backward pass per window; the activations of a window are in memory at once.

    Args:
        outputs: the activations in graph order, each with the outputs of the products that read it.
        tick: called with the number of windows done.
    """
    import torch

    sums: Tensors = {}
    costs: Tensors = {}
    masses: dict[str, float] = dict.fromkeys(outputs, 0.0)
    expected: list[torch.Tensor] = []
    for number, window in enumerate(windows):
        rows_of, size_of, cost_of, predicted = _window(interpreter, window, outputs, number)
        if number >= len(apart(windows)) or len(windows) == 1:
            expected.append(predicted)
        for name, rows in rows_of.items():
            size = size_of[name]
            weighted = rows * size[:, None]
            sums[name] = sums[name].addmm_(weighted.T, rows) if name in sums else weighted.T @ rows
            masses[name] += float(size.sum(dtype=torch.float64))
        for output, cost in cost_of.items():
            costs[output] = costs[output] + cost if output in costs else cost
        tick(number + 1)
    moments = {name: total.div_(masses[name]) if masses[name] else total for name, total in sums.items()}
    frequencies = torch.stack(expected).mean(0).float()
    return Weighted(moments, {name: cost / windows.size for name, cost in costs.items()}, frequencies)


def _window(
    interpreter: Interpreter, window: Ids, outputs: Mapping[str, tuple[str, ...]], number: int
) -> tuple[Tensors, Tensors, Tensors, torch.Tensor]:
    """Inputs [tokens, width] and |g| [tokens] of each activation, sums of g_o**2 |x|**2 [width] of each output, and
    the mean predicted probability of each token."""
    import torch

    owner = {output: activation for activation, found in outputs.items() for output in found}
    first = next(iter(outputs))
    inputs: Tensors = {}
    energies: Tensors = {}
    costs: Tensors = {}

    def add(output: str, gradient: torch.Tensor) -> None:
        activation = owner[output]
        squares = gradient.reshape(-1, gradient.shape[-1]).square()
        energy = squares.sum(-1)
        energies[activation] = energies[activation] + energy if activation in energies else energy
        costs[output] = inputs[activation].square().sum(-1) @ squares

    def visit(name: str, value: torch.Tensor) -> torch.Tensor | None:
        if name in owner:
            value.register_hook(lambda gradient: add(name, gradient))  # type: ignore[no-untyped-call]
            return None
        inputs[name] = value.detach().reshape(-1, value.shape[-1])
        # Nothing before the first of them needs a gradient: autograd's graph begins here.
        return value.detach().requires_grad_() if name == first else None

    with interpreter.observe([*outputs, *owner], visit), torch.enable_grad():
        logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
        probabilities = logits.detach().float().softmax(-1)
        answers = sampled_labels(probabilities, SEED, number)
        torch.nn.functional.cross_entropy(logits, answers, reduction="sum").backward()  # type: ignore[no-untyped-call]
    expected = probabilities.mean(0, dtype=torch.float64)
    return inputs, {name: energy.sqrt() for name, energy in energies.items()}, costs, expected
