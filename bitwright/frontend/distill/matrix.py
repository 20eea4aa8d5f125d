"""A quantized matrix whose codes and scales can be trained.

A weight is its group's scale times one of the grid's numbers. Next to each number stands a latent one, in the same
units; the number is the one of the grid nearest to it. Backwards, rounding counts as the identity (the straight-through
estimator, Bengio et al. 2013), and scales get the gradient of the product (learned step sizes, Esser et al. 2020).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

KEPT_SHARE = 0.45
"""Largest distance of a latent number from its grid number at the start, in steps: training begins with given codes."""

LOWEST, HIGHEST = -128, 127
"""Numbers of a codebook."""

HALVES: Floats = np.arange(LOWEST, HIGHEST + 0.5, 0.5, dtype=np.float32)
"""Thresholds between integers are halves of integers: the number nearest to x is the one nearest to ceil(2x) / 2."""


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of a matrix on their grid.

    Attributes:
        values: float32 [rows, inputs], the grid's numbers, in units of the scales.
        scales: float32 [rows, groups].
        low, high: float32 [rows, groups] or [1, 1]: ends of the grid.
        numbers: float32 [n], ascending integers of int8: all numbers of the grid; None: the integers from low to high.
    """

    values: Floats
    scales: Floats
    low: Floats
    high: Floats
    numbers: Floats | None = None

    @property
    def step(self) -> float:
        """Mean distance of neighbours on the grid."""
        return 1.0 if self.numbers is None else float(self.numbers[-1] - self.numbers[0]) / (len(self.numbers) - 1)

    @property
    def weights(self) -> Floats:
        """What the rows stand for, float32 [rows, inputs]."""
        cut = self.values.reshape(*self.scales.shape, -1)
        return (cut * self.scales[:, :, None]).reshape(self.values.shape)


@dataclass(frozen=True)
class FloatRows:
    """Rows of a matrix that stay floats, and as they are: float32 [rows, inputs]."""

    weights: Floats


class TrainableRows:
    """Rows with latent numbers and scales as leaves of autograd.

    Args:
        weights: float32 [rows, inputs], what the rows stand for before quantization.
    """

    def __init__(self, rows: QuantizedRows, weights: Floats) -> None:
        import torch

        self._rows = rows
        count, groups = rows.scales.shape
        scales = rows.scales[:, :, None]
        cut = weights.reshape(count, groups, -1)
        exact = np.divide(cut, scales, out=np.zeros_like(cut), where=scales != 0).reshape(weights.shape)
        reach = np.float32(KEPT_SHARE * rows.step)
        latent = rows.values + np.clip(exact - rows.values, -reach, reach)
        if rows.numbers is not None:
            latent = np.where(_nearest(latent, rows.numbers) == rows.values, latent, rows.values)
        self.latent = torch.from_numpy(latent.astype(np.float32)).requires_grad_()
        self.scales = torch.from_numpy(rows.scales.astype(np.float32)).requires_grad_()
        self._low, self._high = torch.from_numpy(rows.low), torch.from_numpy(rows.high)
        self._nearest = None if rows.numbers is None else torch.from_numpy(_nearest(HALVES, rows.numbers))

    def values(self) -> torch.Tensor:
        """The grid's number nearest to each latent one, float32 [rows, inputs]."""
        import torch

        latent = self.latent.detach()
        if self._nearest is not None:
            halves = (2 * latent).ceil_().clamp_(2 * LOWEST, 2 * HIGHEST).sub_(2 * LOWEST).to(torch.int32)
            return self._nearest.index_select(0, halves.clamp_min_(0).view(-1)).view_as(latent)
        count, groups = self.scales.shape
        cut = latent.round().view(count, groups, -1)
        return torch.minimum(torch.maximum(cut, self._low[:, :, None]), self._high[:, :, None]).view_as(latent)

    def weights(self) -> torch.Tensor:
        """What the rows stand for, float32 [rows, inputs], differentiable in latent numbers and scales."""
        result: torch.Tensor = _product()(self.latent, self.scales, self.values())
        return result

    def quantized(self) -> QuantizedRows:
        """The rows as they are now."""
        values, scales = self.values().numpy(), self.scales.detach().numpy().copy()
        return QuantizedRows(values, scales, self._rows.low, self._rows.high, self._rows.numbers)

    def groups(self, codes: float, scales: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: rates of change in steps, and in shares of the scales' mean size."""
        size = float(np.abs(self._rows.scales).mean()) or 1.0
        return [
            {"params": [self.latent], "lr": 0.0, "rate": codes * self._rows.step},
            {"params": [self.scales], "lr": 0.0, "rate": scales * size},
        ]

    def reaches(self, codes: float, scales: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The leaves, each with a distance: so many steps of the grid, and such a share of each scale as it is now."""
        import torch

        return [
            (self.latent, torch.tensor(codes * self._rows.step)),
            (self.scales, scales * self.scales.detach().abs()),
        ]


def _nearest(x: Floats, numbers: Floats) -> Floats:
    return numbers[np.searchsorted((numbers[1:] + numbers[:-1]) / 2, x)]


@functools.cache
def _product() -> Any:
    """The product of numbers and scales as a function of latent numbers and scales; made when torch is there."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, latent: Any, scales: Any, values: Any) -> Any:
            ctx.save_for_backward(scales, values)
            rows, groups = scales.shape
            return (values.view(rows, groups, -1) * scales[:, :, None]).view_as(values)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            scales, values = ctx.saved_tensors
            rows, groups = scales.shape
            cut = gradient.view(rows, groups, -1)
            return (
                (cut * scales[:, :, None]).view_as(values),
                (cut * values.view(rows, groups, -1)).sum(-1),
                None,
            )

    return Product.apply
