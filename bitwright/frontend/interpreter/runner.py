"""Run a canonical ONNX graph in torch, value by value: pruned to what is asked, observable, differentiable."""

from __future__ import annotations

import difflib
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.frontend.interpreter.convert import to_torch
from bitwright.frontend.interpreter.plan import Step, pruned, require_producers, steps_of
from bitwright.frontend.interpreter.weights import RESIDENT_BYTES, Weights

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    Callback = Callable[[str, torch.Tensor], torch.Tensor | None]
    Tensors = dict[str, torch.Tensor]


@dataclass
class Observation:
    """A registered callback; ``remove`` it, or use it as a context manager."""

    names: frozenset[str]
    callback: Callback
    _all: list[Observation] = field(repr=False)

    def remove(self) -> None:
        if self in self._all:
            self._all.remove(self)

    def __enter__(self) -> Observation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class GraphRunner:
    """A graph as a differentiable torch function.

    ``weights`` holds the initializers by name, shared with the model file where no conversion was needed, and on a CPU
    read anew at every use where they are many (see ``weights.Weights``): replace an entry to try another weight, or
    ``requires_grad_()`` a clone of it for gradients. Never write to one in place.

    Args:
        graph: canonical ONNX (opset 23 and the bitwright domain).
        device: torch device to compute on.
        dtype: floating type that stands for float32; float64 makes a sharper oracle.

    Raises:
        UnsupportedError: a node's op, domain, version or attribute is not known; it is named.
    """

    def __init__(self, graph: ir.Model, *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        import torch

        self.device = torch.device(device)
        self.dtype = torch.float32 if dtype is None else dtype
        self._graph = graph.graph
        self._steps = steps_of(graph, self.dtype, self.device)
        initializers = graph.graph.initializers

        def read(name: str) -> torch.Tensor:
            return to_torch(initializers[name].const_value, self.dtype, self.device, f"initializer '{name}'")

        self._stored = Weights(initializers, read, RESIDENT_BYTES if self.device.type == "cpu" else None)
        self.weights: MutableMapping[str, torch.Tensor] = self._stored
        self.inputs: tuple[str, ...] = tuple(v.name for v in graph.graph.inputs if v.name not in self.weights)
        self.outputs: tuple[str, ...] = tuple(v.name for v in graph.graph.outputs)
        require_producers(self._steps, {*self.weights, *self.inputs}, self.outputs)
        self._values = {name for step in self._steps for name in step.outputs if name} | set(self.inputs)
        self._observable = self._values
        self._observations: list[Observation] = []
        self._plans: dict[tuple[frozenset[str], frozenset[str]], tuple[Step, ...]] = {}

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Collection[str] | None = None,
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> Tensors:
        """Compute ``outputs``, any values of the graph (default: its own outputs), and only what they depend on.

        Intermediate values are released after their last reader, unless autograd keeps them. Gradients flow if grad
        mode is on and an input, a weight or an observer's replacement requires them.

        Args:
            inputs: a tensor for every graph input.
            given: values of the graph that are known already: they, and what only they depend on, are not computed.
        """
        self._check_inputs(inputs)
        wanted = self.outputs if outputs is None else tuple(outputs)
        self._check_names(wanted, self._values | set(self.weights))
        known_already = given or {}
        self._check_names(known_already, self._values)
        values: Tensors = {}
        for name, tensor in (*inputs.items(), *known_already.items()):
            tensor = tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)
            values[name] = self._observed(name, tensor)
        known = ChainMap(values, self.weights)
        with self._stored.reread():
            for step in self._plan(frozenset(wanted), frozenset(known_already)):
                results = self._execute(step, known)
                for output, result in zip(step.outputs, results, strict=False):
                    if output and output not in known_already:
                        values[output] = self._observed(output, result)
                del results
                for name in step.dying:
                    values.pop(name, None)
        return {name: known[name] for name in wanted}

    def resident(self) -> AbstractContextManager[None]:
        """Keep all weights in memory inside the block: for many runs of few tokens."""
        return self._stored.resident()

    def observe(self, names: Iterable[str], callback: Callback) -> Observation:
        """Call ``callback(name, tensor)`` whenever one of ``names`` (graph inputs or node outputs) is computed.

        A tensor it returns takes the value's place. Callbacks run in the order of registration; a value that no
        requested output depends on is not computed, hence not observed.
        """
        chosen = frozenset(names)
        self._check_names(sorted(chosen), self._observable)
        observation = Observation(chosen, callback, self._observations)
        self._observations.append(observation)
        return observation

    def _execute(self, step: Step, values: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What a step computes of the values known so far."""
        return execute(step, values)

    def _check_inputs(self, inputs: Mapping[str, Any]) -> None:
        missing = [name for name in self.inputs if name not in inputs]
        unknown = [name for name in inputs if name not in self.inputs]
        if missing or unknown:
            raise UsageError(
                f"graph input '{missing[0]}' is missing" if missing else f"the graph has no input '{unknown[0]}'",
                limit=f"its inputs: {', '.join(self.inputs)}",
                remedy="give exactly one tensor for each",
            )

    def _check_names(self, names: Iterable[str], known: Collection[str]) -> None:
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
                raise UsageError(
                    f"the graph computes no value '{name}'",
                    remedy=f"close names: {', '.join(near)}" if near else "look the name up in the graph",
                )

    def _plan(self, wanted: frozenset[str], given: frozenset[str]) -> tuple[Step, ...]:
        if (wanted, given) not in self._plans:
            self._plans[wanted, given] = pruned(self._steps, wanted, frozenset(self.weights), given)
        return self._plans[wanted, given]

    def _observed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        for observation in self._observations:
            if name in observation.names:
                replacement = observation.callback(name, tensor)
                tensor = tensor if replacement is None else replacement
        return tensor


def execute(step: Step, values: Mapping[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, ...]:
    """Call a step's function; ``options`` are more keyword arguments than its attributes."""
    arguments = [values[name] if name else None for name in step.inputs]
    try:
        result = step.function(*arguments, **step.attributes, **options)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join("absent" if a is None else f"{a.dtype} {list(a.shape)}" for a in arguments)
        raise InputError(
            f"{step.key.op} cannot be computed: {error}",
            where=step.where,
            limit=f"its inputs: {shapes}",
            remedy="check the model file, or that the inputs' lengths agree with each other",
        ) from error
    results = result if isinstance(result, tuple) else (result,)
    if any(step.outputs[len(results) :]):
        raise UnsupportedError(
            f"the torch interpreter computes {len(results)} of {len(step.outputs)} outputs of {step.key}",
            where=step.where,
            remedy="normalise the graph first",
        )
    return results
