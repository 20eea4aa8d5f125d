"""The table of operators, keyed by (domain, op, version): an ONNX op means something only together with all three."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from bitwright.errors import InternalError

if TYPE_CHECKING:
    import torch

    OpFunction = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

_F = TypeVar("_F", bound="OpFunction")


class OpKey(NamedTuple):
    """An operator: its domain ("" is ai.onnx), its name, and the opset version that introduced this definition."""

    domain: str
    op: str
    version: int

    def __str__(self) -> str:
        return f"{self.domain or 'ai.onnx'}.{self.op} version {self.version}"


_OPS: dict[OpKey, OpFunction] = {}


def op(name: str, version: int, domain: str = "") -> Callable[[_F], _F]:
    """Register a pure function for one operator.

    The function takes the node's inputs as positional tensors (None where an optional one is absent) and its
    attributes as keyword-only arguments; an attribute it does not declare makes the node unsupported. It returns the
    outputs in order.
    """

    def register(function: _F) -> _F:
        key = OpKey(domain, name, version)
        if key in _OPS:
            raise InternalError(f"{key} is registered twice", where="torch interpreter")
        _OPS[key] = function
        return function

    return register


def find(key: OpKey) -> OpFunction | None:
    """The function of ``key``, or None. The versions match exactly."""
    _load()
    return _OPS.get(key)


def supported_ops() -> tuple[OpKey, ...]:
    """Every operator that the interpreter runs, sorted."""
    _load()
    return tuple(sorted(_OPS))


def resolve(domain: str, name: str, opset: int) -> OpKey:
    """The operator that ``name`` means in a graph importing version ``opset`` of ``domain``.

    Standard domains have a schema that knows when the definition last changed; in other domains each version stands
    for itself.
    """
    from onnx import defs

    domain = "" if domain == "ai.onnx" else domain
    try:
        return OpKey(domain, name, defs.get_schema(name, max_inclusive_version=opset, domain=domain).since_version)
    except defs.SchemaError:
        return OpKey(domain, name, opset)


def _load() -> None:
    """Importing the functions registers them; it waits until someone asks because it imports torch."""
    from bitwright.frontend.interpreter.ops import (  # noqa: F401
        attention,
        elementwise,
        layout,
        linear,
        logic,
        norm,
        reduce,
        rotary,
        rotation,
    )
