"""Comparisons, booleans and the choice between two tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.frontend.interpreter.registry import op


@op("Equal", 19)
def equal(a: Tensor, b: Tensor) -> Tensor:
    return a == b


@op("Less", 13)
def less(a: Tensor, b: Tensor) -> Tensor:
    return a < b


@op("LessOrEqual", 16)
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    return a <= b


@op("Greater", 13)
def greater(a: Tensor, b: Tensor) -> Tensor:
    return a > b


@op("GreaterOrEqual", 16)
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    return a >= b


@op("And", 7)
def and_(a: Tensor, b: Tensor) -> Tensor:
    return a & b


@op("Or", 7)
def or_(a: Tensor, b: Tensor) -> Tensor:
    return a | b


@op("Not", 1)
def not_(x: Tensor) -> Tensor:
    return ~x


@op("Where", 16)
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)
