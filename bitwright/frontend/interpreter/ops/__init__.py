"""The operators' functions: pure, differentiable, one file per kind. Importing this imports torch."""

from bitwright.frontend.interpreter.ops import attention, elementwise, layout, linear, logic, norm, reduce, rotary

__all__ = ["attention", "elementwise", "layout", "linear", "logic", "norm", "reduce", "rotary"]
