"""What each input of a language model's graph is: tokens, mask, positions, token types or a cached tensor."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import onnx_ir as ir

from bitwright.errors import InputError, UnsupportedError
from bitwright.frontend.graph import is_float


class Role(Enum):
    IDS = "input_ids"
    MASK = "attention_mask"
    POSITIONS = "position_ids"
    TOKEN_TYPES = "token_type_ids"
    PAST = "past"


_INTEGER_ROLES = {role.value: role for role in Role if role is not Role.PAST}


class Roles:
    """Maps the graph's inputs to roles. Cached tensors are recognised by being floating point of rank 4.

    Raises:
        UnsupportedError: for an input that is none of these.
        InputError: where ``input_ids`` is missing.
    """

    def __init__(self, model: ir.Model) -> None:
        self._roles: dict[ir.Value, Role] = {}
        for value in model.graph.inputs:
            self._roles[value] = _role(value)
        if Role.IDS not in self._roles.values():
            raise InputError(
                "the graph has no input 'input_ids'",
                where=f"inputs {[v.name for v in model.graph.inputs]}",
                limit="a language model reads int64 input_ids [batch, sequence]",
                remedy="export a text model",
            )

    def items(self) -> Iterator[tuple[ir.Value, Role]]:
        return iter(list(self._roles.items()))

    def get(self, role: Role) -> ir.Value | None:
        return next((v for v, r in self._roles.items() if r is role), None)

    @property
    def past(self) -> list[ir.Value]:
        return [v for v, r in self._roles.items() if r is Role.PAST]

    def concrete_shape(self, value: ir.Value, n: int, p: int) -> tuple[int, ...]:
        """Shape of an input for ``n`` tokens after ``p`` cached ones, batch 1."""
        role = self._roles[value]
        if role is Role.PAST:
            assert value.shape is not None  # checked by _role
            return (1, _fixed(value, 1), p, _fixed(value, 3))
        return (1, n + p) if role is Role.MASK else (1, n)


def _role(value: ir.Value) -> Role:
    if value.name in _INTEGER_ROLES:
        if value.shape is not None and len(value.shape) != 2:
            raise UnsupportedError(
                f"input '{value.name}' has rank {len(value.shape)}",
                where="graph inputs",
                limit="[batch, sequence]",
                remedy="export the model again",
            )
        return _INTEGER_ROLES[value.name]
    if value.shape is not None and len(value.shape) == 4 and is_float(value):
        return Role.PAST
    raise UnsupportedError(
        f"input '{value.name}' of the graph is not understood",
        where="graph inputs",
        limit=f"{', '.join(sorted(_INTEGER_ROLES))}, and cached keys and values of rank 4",
        remedy="export a text decoder or encoder with these inputs only",
    )


def _fixed(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    if isinstance(size, int) and size > 0:
        return size
    raise UnsupportedError(
        f"axis {axis} of cached tensor '{value.name}' has no fixed size",
        where="graph inputs",
        limit="[batch, kv heads, past, head size] with both sizes known",
        remedy="export with fixed head counts",
    )
