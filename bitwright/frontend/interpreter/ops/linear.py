"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.frontend.interpreter.registry import op


@op("MatMul", 13)
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """NumPy's matmul: the last two dimensions multiply, the others broadcast."""
    return torch.matmul(a, b)


@op("Gemm", 13)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha A' B' + beta C of two matrices, each transposed on request."""
    product = alpha * torch.matmul(a.T if transA else a, b.T if transB else b)
    return product if c is None else product + beta * c
