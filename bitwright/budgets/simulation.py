"""A plan's divergence from the float model, measured by running the model in torch with every site as the plan says.

Weights are those that the codes stand for, inputs of products are rounded to int8 where the plan reads them so (16 bits
count as exact), caches give back what they would store. What is not simulated: the order of the kernels' additions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitwright.cachemaps import CacheMaps
from bitwright.codegen.quantized_rows import LARGEST, SCALE_BITS
from bitwright.runs import Scheme, first_rows, runs_of
from bitwright.scheme import CacheScheme, WeightScheme

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.calibrate.points import Points
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.moments import Ids
    from bitwright.site import Site

Floats = npt.NDArray[np.float32]
Dequantized = Callable[["Site", WeightScheme], Floats]
"""A site's matrix [outputs, inputs] as its codes in a scheme stand for it."""

Reading = tuple[int, int]
"""How a product reads its input: bits and group."""


@dataclass(frozen=True)
class Simulation:
    """A float model over windows of text.

    Attributes:
        interpreter, points: of its graph.
        sites: all of them.
        windows: int64 [windows, tokens].
        weights: a site's float matrix; ``dequantized``: the same from codes.
        skip: positions at the start of a window that are not counted.
        maps: of mapped caches.
    """

    interpreter: Interpreter
    points: Points
    sites: tuple[Site, ...]
    windows: Ids
    weights: Callable[[Site], Floats]
    dequantized: Dequantized
    skip: int = 0
    maps: CacheMaps = CacheMaps()  # noqa: RUF009 - a frozen value
    _reference: list[torch.Tensor] = field(default_factory=list, repr=False)

    @property
    def reference(self) -> list[torch.Tensor]:
        """The float model's log-probabilities by window, [tokens - skip, vocabulary]."""
        import torch

        if not self._reference:
            with torch.no_grad():
                self._reference.extend(self._logs(window) for window in self.windows)
        return self._reference

    def _logs(self, window: npt.NDArray[np.int64]) -> torch.Tensor:
        import torch

        logits = self.interpreter.run(self.interpreter.feeds(window), ("logits",))["logits"][0]
        return torch.log_softmax(logits[self.skip :].float(), -1)

    def divergence(self, schemes: Mapping[str, Scheme]) -> float:
        """Mean Kullback-Leibler divergence in nats per token; sites that ``schemes`` leaves out stay float."""
        import torch

        reference = self.reference
        with self.changed(schemes), torch.no_grad():
            found = [_divergence(p, self._logs(window)) for p, window in zip(reference, self.windows, strict=True)]
        return float(np.mean([float(value) for value in found]))

    def changed(self, schemes: Mapping[str, Scheme]) -> Changed:
        """The model with sites as ``schemes`` say, inside a with-block."""
        return Changed(self, schemes)


def _divergence(reference: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    return (reference.exp() * (reference - logs)).sum(-1).mean()


def initializer_of(weight: str) -> tuple[str, bool]:
    """Name of the graph's tensor behind a parameter, and whether it lies there as [inputs, outputs]."""
    return (weight.removesuffix(".T"), True) if weight.endswith(".T") else (weight, False)


def cache_of(site: Site, points: Points) -> str:
    """Name of what a cache's site gives back, where the interpreter keeps it apart (``Interpreter.caches``)."""
    from bitwright.frontend.interpreter import cache_name

    return cache_name(points.caches[int(site.name.split(".")[1])][site.kind == "v_cache"])


@dataclass
class Changed:
    """See :meth:`Simulation.changed`."""

    simulation: Simulation
    schemes: Mapping[str, Scheme]
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Changed:
        import torch

        readings: dict[str, list[tuple[Site, int, int, Reading]]] = {}
        self._stack.enter_context(self.simulation.interpreter.caches(self._runs()))
        for site in self.simulation.sites:
            scheme = self.schemes.get(site.name)
            if scheme is None:
                continue
            if isinstance(scheme, CacheScheme):
                self._cache(site, scheme)
                continue
            runs = runs_of(scheme, site.shape[0])
            product = self.simulation.points.products.get(site.weight)
            matrix = np.empty(site.shape, np.float32)
            for first, run in zip(first_rows(runs), runs, strict=True):
                rows = slice(first, first + run.rows)
                matrix[rows] = self.simulation.dequantized(site, run.scheme.weight)[rows]
                reading = (16, 0) if run.scheme.terms != 1 else (8, run.scheme.weight.group)
                if product is not None:
                    readings.setdefault(product.activation, []).append((site, first, first + run.rows, reading))
            self._replace(site.weight, torch.from_numpy(matrix))
        for activation, parts in readings.items():
            self._read(activation, parts)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _replace(self, weight: str, matrix: torch.Tensor) -> None:
        name, transposed = initializer_of(weight)
        weights = self.simulation.interpreter.weights
        old = weights[name]
        weights[name] = matrix.T.contiguous() if transposed else matrix
        self._stack.callback(weights.__setitem__, name, old)

    def _runs(self) -> dict[str, int]:
        """Tokens of a run that each attention sees exactly, by the name of its keys."""
        runs = [0] * len(self.simulation.points.caches)
        for name, scheme in self.schemes.items():
            if isinstance(scheme, CacheScheme):
                layer = int(name.split(".")[1])
                runs[layer] = max(runs[layer], scheme.recent)
        return {keys: run for (keys, _), run in zip(self.simulation.points.caches, runs, strict=True)}

    def _cache(self, site: Site, scheme: CacheScheme) -> None:
        import torch

        from bitwright.passes.sensitivity.scores import stored

        name = cache_of(site, self.simulation.points)
        heads, width = site.shape
        head_map = self.simulation.maps.of(site.name)

        def give_back(_: str, value: torch.Tensor) -> torch.Tensor:
            rows = value.detach()[0].transpose(0, 1) if value.dim() == 4 else value.detach()[0]
            held = np.ascontiguousarray(rows.reshape(-1, heads, width).numpy())
            kept = torch.from_numpy(stored(held, scheme, head_map))
            back = kept.transpose(0, 1)[None] if value.dim() == 4 else kept.reshape(value.shape)
            return value + (back - value).detach()

        self._stack.enter_context(self.simulation.interpreter.observe((name,), give_back))

    def _read(self, activation: str, parts: list[tuple[Site, int, int, Reading]]) -> None:
        """Round an input as most rows read it; rows that read it otherwise are computed again."""
        counts: Counter[Reading] = Counter()
        for _, first, last, reading in parts:
            counts[reading] += last - first
        usual = max(counts, key=lambda reading: (counts[reading], reading))
        exact: dict[str, torch.Tensor] = {}

        def read(_: str, value: torch.Tensor) -> torch.Tensor:
            exact["x"] = value
            return as_read(value, usual)

        interpreter = self.simulation.interpreter
        self._stack.enter_context(interpreter.observe((activation,), read))
        for site in {part[0].name: part[0] for part in parts}.values():
            others = [part for part in parts if part[0] is site and part[3] != usual]
            if others:
                output = self.simulation.points.products[site.weight].output
                self._stack.enter_context(interpreter.observe((output,), self._again(site, others, exact)))

    def _again(self, site: Site, parts: list[tuple[Site, int, int, Reading]], exact: dict[str, torch.Tensor]) -> Any:
        name, transposed = initializer_of(site.weight)
        weights = self.simulation.interpreter.weights

        def again(_: str, value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            matrix = weights[name] if transposed else weights[name].T
            for _site, first, last, reading in parts:
                value[..., first:last] = as_read(exact["x"], reading) @ matrix[:, first:last]
            return value

        return again


def as_read(value: torch.Tensor, reading: Reading) -> torch.Tensor:
    """The float tensor that int8 activations [..., inputs] stand for; gradients pass as if nothing were rounded."""
    import torch

    bits, group = reading
    if bits == 16:
        return value
    grouped = value.detach().reshape(*value.shape[:-1], -1, group or value.shape[-1])
    largest = grouped.abs().amax(-1, keepdim=True)
    below = (1 << (23 - SCALE_BITS[1])) - 1  # the scale is rounded up
    scale = (((largest / LARGEST[1]).float().view(torch.int32) + below) & ~below).view(torch.float32)
    inverse = torch.where(largest > 0, 1 / scale.clamp_min(2.0**-107), torch.zeros_like(largest))
    rounded = (torch.round(grouped * inverse) * scale).reshape(value.shape)
    return value + (rounded - value).detach()


def divergence_of_error(interpreter: Interpreter, windows: Ids, weight: str, error: Floats) -> float:
    """Nats per token when ``weight`` alone is off, by ``error`` float32 [outputs, inputs]."""
    import torch

    name, transposed = initializer_of(weight)
    old = interpreter.weights[name]
    change = torch.from_numpy(np.ascontiguousarray(error.T if transposed else error)).to(old)

    def logs(window: npt.NDArray[np.int64]) -> torch.Tensor:
        logits = interpreter.run(interpreter.feeds(window), ("logits",))["logits"][0]
        return torch.log_softmax(logits.float(), -1)

    found = []
    with torch.no_grad():
        for window in windows:
            reference = logs(window)
            interpreter.weights[name] = old + change
            try:
                found.append(float(_divergence(reference, logs(window))))
            finally:
                interpreter.weights[name] = old
    return float(np.mean(found))
