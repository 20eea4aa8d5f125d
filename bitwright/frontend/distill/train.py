"""Train codes and scales on the float model's predictions (Hinton et al. 2015; with codes: LLM-QAT, Liu et al. 2023).

A step takes one window of text and descends the mean divergence KL(float || quantized) of its positions with Adam
(Kingma and Ba 2015), whose steps do not depend on the size of gradients: latent numbers move by so many steps of their
grid, scales by so many shares of their mean. Rates rise over the first steps and fall to nothing along a cosine.

Such steps go as far for noise as for what the text teaches, and a model that began well is easily carried past the best
place on its way. What was learned grows with the share of the way that is gone, what noise costs with its square: when
training is over, held-out text decides how far to go. A share above 1 goes on in the same direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitwright.errors import NumericalError
from bitwright.frontend.allowance import Allowance
from bitwright.frontend.distill.checkpoint import keep, restore
from bitwright.frontend.distill.student import Student, log_probabilities

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter
    from bitwright.moments import Ids

CODE_RATE = 1.5e-3
"""Steps of the grid that a latent number moves per training step, at most."""

SCALE_RATE = 2.5e-4
"""Share of the scales' mean size that a scale moves per training step, at most."""

WARM_UP = 10
SHARES = ((2.0, 4.0), (0.5, 0.25))
"""Of the way from what training began with to what it came to. From 1, those of one direction are tried while that
helps, and those of the other if it does not."""

KEEP_EVERY = 25
"""Training steps between two states that are kept: each takes twelve bytes per weight."""

BETAS = (0.9, 0.95)
SEED = 0


def recipe() -> str:
    """All that training depends on besides its arguments."""
    return f"3 {CODE_RATE} {SCALE_RATE} {WARM_UP} {SHARES} {BETAS} {SEED} {has_bf16_products()}"


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes:
        before, after: divergence of held-out windows, nats per token.
        share: of the way that training went, how much is gone; more than 1: further in its direction.
    """

    before: float
    after: float
    share: float


Progress = Callable[[int, float], None]
"""Called with (steps done, running mean of the divergence)."""


def train(
    student: Student,
    teacher: Interpreter,
    windows: Ids,
    held_out: Ids,
    steps: int,
    *,
    seconds: float | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Take ``steps`` training steps over ``windows`` int64 [windows, tokens], in an order that a fixed seed draws.

    Args:
        seconds: time after which no step begins, interrupted trainings included; rates have fallen to nothing then.
        checkpoint: file that keeps the state of an interrupted training, which then goes on where it was kept; it stays
            when training is over. Whoever names it answers for everything that training depends on.

    Raises:
        InputError: the checkpoint is damaged.
        NumericalError: the divergence is not a number.
    """
    import torch

    optimizer = torch.optim.Adam(student.groups(CODE_RATE, SCALE_RATE), betas=BETAS, fused=True)
    before, running, first, spent = math.nan, math.nan, 0, 0.0
    start = [leaf.detach().clone() for leaf in student.leaves()]
    if checkpoint is not None and checkpoint.exists():
        before, running, first, spent = restore(checkpoint, student, optimizer)
    allowance = Allowance(seconds, spent)
    if math.isnan(before):
        before = divergence(student, teacher, held_out)
    for done, number in islice(enumerate(order(len(windows), steps)), first, None):
        if allowance.over:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(done, allowance.progress(done, steps))
        with half_products():
            with torch.no_grad():
                wanted = log_probabilities(teacher, windows[number])
            found = student.log_probabilities(windows[number], student.weights())
        loss = _mean_divergence(wanted, found)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericalError(
                f"the divergence is {value} after {done} training steps",
                where="--distill",
                remedy="compile without distillation, and check the model's logits with bitwright eval",
            )
        running = value if math.isnan(running) else 0.95 * running + 0.05 * value
        if progress is not None:
            progress(done + 1, running)
        ends = done + 1 == steps or allowance.over
        if checkpoint is not None and (ends or (done + 1) % KEEP_EVERY == 0):
            keep(checkpoint, student, optimizer, (before, running, done + 1, allowance.spent))
    del optimizer
    return best_share(student, start, before, lambda: divergence(student, teacher, held_out))


def best_share(student: Student, start: list[torch.Tensor], before: float, measure: Callable[[], float]) -> Trained:
    """Leave ``student`` at the best of SHARES of the way from ``start``."""
    import torch

    end = [leaf.detach().clone() for leaf in student.leaves()]

    def go(share: float) -> None:
        with torch.no_grad():
            for leaf, first, last in zip(student.leaves(), start, end, strict=True):
                leaf.copy_(torch.lerp(first, last, share))

    best = Trained(before, measure(), 1.0)
    for direction in SHARES:
        for share in direction:
            go(share)
            found = Trained(before, measure(), share)
            if not found.after < best.after:
                break
            best = found
        if best.share != 1.0:
            break
    go(best.share)
    return best


def divergence(student: Student, teacher: Interpreter, windows: Ids) -> float:
    """Mean KL(float || quantized) of all positions of ``windows``, nats per token, in single precision."""
    import torch

    with torch.no_grad():
        weights = student.weights()
        values = [
            float(_mean_divergence(log_probabilities(teacher, window), student.log_probabilities(window, weights)))
            for window in windows
        ]
    return float(np.mean(values))


def _mean_divergence(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    return (wanted.exp() * (wanted - found)).sum(-1).mean()


def order(windows: int, steps: int) -> Iterator[int]:
    """Every window once, in a drawn order, then again in another."""
    random = np.random.default_rng(SEED)
    for first in range(0, steps, windows):
        yield from (int(i) for i in random.permutation(windows)[: steps - first])


def _schedule(done: int, progress: float) -> float:
    return min(1.0, (done + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))


@contextmanager
def half_products() -> Iterator[None]:
    """bfloat16 matrix products where the CPU has them: twice as fast, and training does not need more."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16_products()):
        yield


def has_bf16_products() -> bool:
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported())
