"""Arithmetic and activation functions, element by element, with NumPy's broadcasting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bitwright.frontend.interpreter.registry import op


@op("Add", 14)
def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


@op("Sub", 14)
def sub(a: Tensor, b: Tensor) -> Tensor:
    return a - b


@op("Mul", 14)
def mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


@op("Div", 14)
def div(a: Tensor, b: Tensor) -> Tensor:
    """Integers divide towards zero, as in C."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@op("Pow", 15)
def pow_(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the base's type, whatever the exponent's."""
    return torch.pow(base, exponent).to(base.dtype)


@op("Neg", 13)
def neg(x: Tensor) -> Tensor:
    return -x


@op("Abs", 13)
def abs_(x: Tensor) -> Tensor:
    return x.abs()


@op("Sqrt", 13)
def sqrt(x: Tensor) -> Tensor:
    return x.sqrt()


@op("Reciprocal", 13)
def reciprocal(x: Tensor) -> Tensor:
    return x.reciprocal()


@op("Exp", 13)
def exp(x: Tensor) -> Tensor:
    return x.exp()


@op("Log", 13)
def log(x: Tensor) -> Tensor:
    return x.log()


@op("Erf", 13)
def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


@op("Tanh", 13)
def tanh(x: Tensor) -> Tensor:
    return x.tanh()


@op("Sigmoid", 13)
def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


@op("Relu", 14)
def relu(x: Tensor) -> Tensor:
    return x.relu()


@op("Softplus", 22)
def softplus(x: Tensor) -> Tensor:
    return functional.softplus(x)


@op("Sin", 22)
def sin(x: Tensor) -> Tensor:
    return x.sin()


@op("Cos", 22)
def cos(x: Tensor) -> Tensor:
    return x.cos()


@op("Gelu", 20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """``none``: x Phi(x) by the error function; ``tanh``: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return functional.gelu(x, approximate=approximate)


@op("Min", 13)
def min_(*terms: Tensor) -> Tensor:
    result = terms[0]
    for term in terms[1:]:
        result = torch.minimum(result, term)
    return result


@op("Max", 13)
def max_(*terms: Tensor) -> Tensor:
    result = terms[0]
    for term in terms[1:]:
        result = torch.maximum(result, term)
    return result


@op("Clip", 13)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@op("Identity", 23)
def identity(x: Tensor) -> Tensor:
    return x


@op("Cast", 23)
def cast(x: Tensor, *, to: torch.dtype, saturate: int = 1) -> Tensor:
    """``to`` arrives as a torch type. ``saturate`` concerns 8-bit floats only, which ``to`` never is here."""
    return x.to(to)
