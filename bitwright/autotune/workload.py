"""What is tuned and timed: one kernel of one shape on one target."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitwright.errors import InputError

_FIELDS: dict[str, type] = {"op": str, "shape": list, "scheme": str, "m": int, "threads": int, "isa": str}
_NAME = re.compile(r"[A-Za-z0-9_.:+-]*")


@dataclass(frozen=True, order=True)
class Workload:
    """One kernel of one shape.

    Attributes:
        op: the operation, such as ``linear``.
        shape: its extents; (outputs, inputs) of a linear layer.
        scheme: name of the scheme of its weights and activations; empty if it has none.
        m: tokens: 1 is decode.
        threads: threads that share the work.
        isa: name of the instruction set that its code is generated for.
    """

    op: str
    shape: tuple[int, ...]
    scheme: str
    m: int
    threads: int
    isa: str

    def __post_init__(self) -> None:
        names = (self.op, self.scheme, self.isa)
        if not self.op or not self.isa or not all(_NAME.fullmatch(name) for name in names):
            raise InputError("a workload has a malformed name", where=f"{names}", limit="letters, digits, _ . : + -")
        if not self.shape or min(*self.shape, self.m, self.threads) < 1:
            raise InputError("a workload has an extent below 1", where=str(self))

    def __str__(self) -> str:
        extents = "x".join(map(str, self.shape))
        return f"{self.op} {extents} {self.scheme or '-'} m{self.m} t{self.threads} {self.isa}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Any, where: str) -> Workload:
        """Raises InputError: a field is missing, unknown or of another type."""
        if not isinstance(document, Mapping) or set(document) != set(_FIELDS):
            raise InputError("a workload has other fields than it should", where=where, limit=", ".join(_FIELDS))
        for name, kind in _FIELDS.items():
            if not isinstance(document[name], kind) or isinstance(document[name], bool):
                raise InputError(f"a workload's {name} is no {kind.__name__}", where=where)
        if not all(type(extent) is int for extent in document["shape"]):
            raise InputError("a workload's shape is no list of integers", where=where)
        return cls(**{**document, "shape": tuple(document["shape"])})
