"""A canonical language model in torch: the float oracle, and what calibration observes and differentiates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.errors import UsageError
from bitwright.frontend.interpreter.runner import GraphRunner, execute
from bitwright.frontend.interpreter.tail import lm_head_input

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from bitwright.frontend.interpreter.plan import Step
    from bitwright.frontend.interpreter.runner import Tensors

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Interpreter(GraphRunner):
    """A canonical graph as a differentiable torch function, with what language models are asked for.

    Constructing it imports torch. ``run`` and ``observe`` work on any value of the graph; the other methods need the
    canonical inputs and outputs of a decoder or an encoder.
    """

    def __init__(self, graph: ir.Model, *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        super().__init__(graph, device=device, dtype=dtype)
        self._runs: Mapping[str, int] | None = None
        cached = {cache_name(name) for step in self._steps if step.key.op == "Attention" for name in _cached(step)}
        self._observable = self._values | cached

    @contextmanager
    def caches(self, runs: Mapping[str, int]) -> Iterator[None]:
        """Inside the block what caches give back stands apart from keys and values, as ``cache_name`` of either.

        It is what a query sees of tokens before its own run of so many (positions with the same quotient), and equal to
        them unless an observer replaces it.

        Args:
            runs: by the name of an attention's keys; of those left out, and for 0, a query sees no other.
        """
        before, self._runs = self._runs, runs
        try:
            yield
        finally:
            self._runs = before

    def _execute(self, step: Step, values: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if self._runs is None or step.key.op != "Attention":
            return execute(step, values)
        names = _cached(step)
        # Views: gradients at them are those of what reads the caches alone.
        stored = tuple(self._observed(cache_name(name), values[name].view_as(values[name])) for name in names)
        return execute(step, values, stored=stored, run=self._runs.get(names[0], 0))

    def logits(self, ids: npt.ArrayLike, *, last_only: bool = False) -> Floats:
        """Logits [n, vocab] float32 of a whole sequence ``ids`` int [n] after an empty past.

        With ``last_only`` those of the last position, [1, vocab], without computing the others where the graph allows.
        """
        output, _ = self._step(self._checked(ids), self.empty_past(), last_only=last_only, cached=False)
        return output

    def hidden(self, ids: npt.ArrayLike, token_types: npt.ArrayLike | None = None) -> Floats:
        """An encoder's hidden states [n, width] float32 of ``ids`` int [n]; token types are zeros unless given."""
        import torch

        feeds = self.feeds(ids, token_types)
        with torch.no_grad():
            output = self.run(feeds, (self._require_output("hidden"),))["hidden"]
        return _to_numpy(output[0])

    def generate(self, ids: npt.ArrayLike, steps: int) -> Ids:
        """The ``steps`` most likely tokens one after another, int64 [steps], through the cache and never stopping."""
        tokens, past, result = self._checked(ids), self.empty_past(), []
        for _ in range(steps):
            output, past = self._step(tokens, past, last_only=True, cached=True)
            tokens = output[-1:].argmax(-1)
            result.append(int(tokens[0]))
        return np.array(result, dtype=np.int64)

    def step(self, ids: npt.ArrayLike, past: Tensors, *, last_only: bool = False) -> tuple[Floats, Tensors]:
        """Logits [n, vocab] float32 of ``ids`` int [n] after ``past``, and the past that includes them.

        With ``last_only`` those of the last position, [1, vocab].
        """
        return self._step(self._checked(ids), past, last_only=last_only, cached=True)

    def empty_past(self) -> Tensors:
        """Caches [1, kv_heads, 0, head_dim] for every past input, by its name."""
        import torch

        return {
            value.name: torch.zeros(
                1, int(value.shape[1]), 0, int(value.shape[3]), dtype=self.dtype, device=self.device
            )
            for value in self._graph.inputs
            if value.name.startswith("past.")
        }

    def feeds(self, ids: npt.ArrayLike, token_types: npt.ArrayLike | None = None) -> Tensors:
        """The graph's inputs for a whole sequence ``ids`` int [n] after an empty past, for ``run``.

        Token types, where the graph has them, are zeros unless given.
        """
        import torch

        checked = self._checked(ids)
        feeds = {**self._positioned(checked, 0), **self.empty_past()}
        if "token_type_ids" in self.inputs:
            types = np.zeros(len(checked)) if token_types is None else np.asarray(token_types)
            feeds["token_type_ids"] = torch.from_numpy(types.astype(np.int64))[None]
        return feeds

    def _step(self, ids: Ids, past: Tensors, *, last_only: bool, cached: bool) -> tuple[Floats, Tensors]:
        import torch

        length = next((tensor.shape[2] for tensor in past.values()), 0)
        feeds = {**self._positioned(ids, length), **past}
        present = {name: "present." + name.removeprefix("past.") for name in past} if cached else {}
        wanted = (self._require_output("logits"), *present.values())
        cut = lm_head_input(self._logits) if last_only else None
        narrowed = self.observe([cut], lambda _, x: x[:, -1:]) if cut else None
        try:
            with torch.no_grad():
                values = self.run(feeds, wanted)
        finally:
            if narrowed:
                narrowed.remove()
        output = values["logits"][0, -1:] if last_only else values["logits"][0]
        return _to_numpy(output), {name: values[out] for name, out in present.items()}

    def _positioned(self, ids: Ids, start: int) -> Tensors:
        """``ids`` as the graph's input, with positions from ``start`` on if it wants them."""
        import torch

        feeds = {"input_ids": torch.from_numpy(ids)[None]}
        if "position_ids" in self.inputs:
            feeds["position_ids"] = torch.arange(start, start + len(ids))[None]
        return feeds

    @functools.cached_property
    def _logits(self) -> ir.Value | None:
        return next((value for value in self._graph.outputs if value.name == "logits"), None)

    @functools.cached_property
    def _vocab(self) -> int | None:
        """The logits' width where the graph states it."""
        size = self._logits.shape[-1] if self._logits is not None and self._logits.shape is not None else None
        return size if isinstance(size, int) else None

    def _checked(self, ids: npt.ArrayLike) -> Ids:
        array = np.asarray(ids)
        if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
            raise UsageError(
                f"token ids are an array of {array.dtype} and shape {array.shape}",
                limit="one dimension, at least one integer",
                remedy="give one sequence of token ids",
            )
        if array.min() < 0 or (self._vocab is not None and array.max() >= self._vocab):
            raise UsageError(
                f"token ids from {array.min()} to {array.max()} are outside the vocabulary",
                limit=f"0 to {self._vocab - 1}" if self._vocab else "not negative",
                remedy="tokenize with the model's own tokenizer",
            )
        return np.ascontiguousarray(array, dtype=np.int64)

    def _require_output(self, name: str) -> str:
        if name not in self.outputs:
            raise UsageError(
                f"the graph has no output '{name}'",
                limit=f"its outputs: {', '.join(self.outputs)}",
                remedy="decoders give logits, encoders hidden states; use run() for anything else",
            )
        return name


def cache_name(value: str) -> str:
    """Name of what a cache gives back, for the name of the keys or values that it is given."""
    return f"{value} (cached)"


def _cached(step: Step) -> tuple[str, str]:
    """Names of an attention's keys and values."""
    keys, values = step.inputs[1:3]
    return str(keys), str(values)


def _to_numpy(tensor: torch.Tensor) -> Floats:
    result: Floats = tensor.float().cpu().numpy()
    return result
