"""The probes that one lifting compares, and the constants it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bitwright.frontend.graph import Editor
from bitwright.frontend.probe import Dependence, Probe
from bitwright.frontend.roles import Roles

SMALLEST_CONTEXT = 8
LONGEST_UNCACHED = 1024  # tokens: an encoder's mask has their square


@dataclass
class Survey:
    """Evaluations of one graph's structural values at several lengths.

    Attributes:
        points: (new tokens n, cached tokens p) at which values are compared: n, p and n+p all differ between the first
            two; the last is as long as the model allows, for what changes with length only.
    """

    model: ir.Model
    roles: Roles
    context: int
    dependence: Dependence
    points: Sequence[tuple[int, int]]
    editor: Editor
    _probes: dict[tuple[int, int], Probe] = field(default_factory=dict)
    _shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)
    _built: dict[ir.Value, ir.Value] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, roles: Roles, context: int) -> Survey:
        cached = [(3, 2), (2, 5), (4, 0), (1, context - 1)]
        uncached = [(3, 0), (5, 0), (min(context, LONGEST_UNCACHED), 0)]
        points = cached if roles.past else uncached
        return cls(model, roles, context, Dependence.of(model, roles), points, Editor(model))

    def probe(self, n: int, p: int) -> Probe:
        if (n, p) not in self._probes:
            self._probes[n, p] = Probe(self.model, self.roles, n, p)
        return self._probes[n, p]

    def contents(self, value: ir.Value) -> list[np.ndarray]:
        """Content at every point; once for what is computed from constants alone."""
        points = self.points[:1] if value in self.dependence.static else self.points
        return [self.probe(*at).value(value) for at in points]

    def shapes(self, value: ir.Value | None) -> list[tuple[int, ...]]:
        """Shape at every point."""
        assert value is not None
        return [self.probe(*at).shape(value) for at in self.points]

    def constant(self, array: np.ndarray, hint: str) -> ir.Value:
        """An initializer with this content, floats as float32; equal contents share one."""
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.editor.initializer(array, hint)
        return self._shared[key]

    def built(self, value: ir.Value) -> ir.Value | None:
        """What already stands for ``value``."""
        return self._built.get(value)

    def remember(self, value: ir.Value, replacement: ir.Value) -> ir.Value:
        self._built[value] = replacement
        return replacement
