"""A compiled model in this process: code, mapped weights, cache state, and entry points on NumPy arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, InternalError, UnsupportedError
from bitwright.runtime.arrays import aligned_zeros
from bitwright.runtime.artifact import Artifact, map_tensors
from bitwright.runtime.decode_step import FUNCTION, DecodeStep
from bitwright.runtime.memory import should_copy
from bitwright.runtime.threads import require_room
from bitwright.tvm_runtime import load_runtime, use_threads

if TYPE_CHECKING:
    import numpy as np

_CPU = 1  # kDLCPU
_POOLED_ALLOCATOR = 2


class CompiledModule:
    """The functions of ``model.so`` bound to one weight set and one cache state.

    Not for use by two threads at once: the cache and the token buffer are shared.

    Attributes:
        weight_bytes, state_bytes: size of each tensor by its address.
        state: the cache tensors by name, which the functions write in place.
    """

    def __init__(self, artifact: Artifact, threads: int, *, copy_weights: bool | None = None) -> None:
        """Open an artifact that was verified before: this runs code from ``model.so``.

        Args:
            copy_weights: into huge pages; None: if this machine has them and room for the copy.
        """
        self._interface = artifact.manifest.interface
        self.use_threads(threads)
        self._ffi = load_runtime()
        self._module, self._vm = _open_library(self._ffi, artifact)
        self._functions = {name: self._vm[name] for name in self._interface.functions}
        if copy_weights is None:
            copy_weights = should_copy(artifact.manifest.files[artifact.weights.name].bytes)
        weights, state = _weights(artifact, copy=copy_weights), _state(artifact)
        # Views keep their arrays alive; the arrays keep the mapping alive.
        self._weights = self._ffi.Array([self._ffi.from_dlpack(array) for array in weights])
        self._state = self._ffi.Array([self._ffi.from_dlpack(array) for array in state])
        self.weight_bytes = {array.ctypes.data: array.nbytes for array in weights}
        self.state_bytes = {array.ctypes.data: array.nbytes for array in state}
        self.state = {record.name: array for record, array in zip(artifact.manifest.state, state, strict=True)}
        self.decode_step = self._decode_step(weights, state)
        self._tokens = aligned_zeros((self._interface.context,), "int64")
        self._types = aligned_zeros((self._interface.context,), "int64")
        self._views: dict[tuple[int, int], Any] = {}

    def step(self, function: str, ids: Sequence[int] | np.ndarray, position: int) -> np.ndarray:
        """Call ``prefill``, ``decode`` or ``score`` for ``ids``, which stand at ``position`` and after it.

        Returns:
            float32 logits [1, vocab], or [len(ids), vocab] for ``score``. The array belongs to the caller.
        """
        if function == "decode" and self.decode_step is not None:
            self.decode(int(ids[0]), position)
            return self.decode_step.logits.copy()
        tokens = self._view(self._tokens, 0, ids)
        return self._call(function, tokens, self._ffi.Shape([position]), self._state, self._weights)

    def decode(self, token: int, position: int) -> None:
        """Append one token with ``decode_step``, which then holds the results."""
        assert self.decode_step is not None
        use_threads(self.threads)
        try:
            self.decode_step(token, position, self.threads)
        except RuntimeError as error:
            raise _failed(FUNCTION, error) from error

    def _decode_step(self, weights: list[np.ndarray], state: list[np.ndarray]) -> DecodeStep | None:
        record = self._interface.step
        if record is None:
            return None
        function = self._plain_function(FUNCTION)
        return DecodeStep(self._ffi, function, record, self._interface.vocab, weights, state)

    def encode(self, ids: Sequence[int] | np.ndarray, token_types: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Call ``encode``: float32 [len(ids), width]."""
        arguments = [self._view(self._tokens, 0, ids)]
        if token_types is not None:
            arguments.append(self._view(self._types, 1, token_types))
        return self._call("encode", *arguments, self._weights)

    def library_function(self, name: str) -> Callable[..., Any]:
        """A plain TIR function of ``model.so``, to be called with ``tensor``s; it computes with ``threads`` threads.

        Raises:
            UnsupportedError: the library does not hold it.
        """
        function = self._plain_function(name)

        def call(*arguments: Any) -> Any:
            use_threads(self.threads)
            return function(*arguments)

        return call

    def _plain_function(self, name: str) -> Any:
        function = self._module.get_function(name, query_imports=True) if self._has(name) else None
        if function is None:
            raise UnsupportedError(
                f"the artifact's library has no function '{name}'", remedy="compile the model again with this version"
            )
        return function

    def tensor(self, array: np.ndarray) -> Any:
        """``array`` as an argument of a library function, without a copy."""
        return self._ffi.from_dlpack(array)

    @contextmanager
    def instrumented(self, instrument: Callable[..., int]) -> Iterator[None]:
        """Let the VM call ``instrument(function, name, before, result, *arguments)`` around each of its calls.

        If it returns 1 before a call, the VM does not make the call.
        """
        self._vm["set_instrument"](instrument)
        try:
            yield
        finally:
            self._vm["set_instrument"](None)

    def use_threads(self, threads: int) -> None:
        """Compute with ``threads`` threads from now on (as many as ``choose_threads`` allows).

        Raises:
            UsageError: the decode step has no memory for so many.
        """
        if self._interface.step is not None:
            require_room(threads, self._interface.step.threads)
        self.threads = threads

    def _has(self, name: str) -> bool:
        return bool(self._module.implements_function(name, query_imports=True))

    def _view(self, buffer: np.ndarray, which: int, values: Sequence[int] | np.ndarray) -> Any:
        count = len(values)
        buffer[:count] = values
        key = (which, count)
        if key not in self._views:
            self._views[key] = self._ffi.from_dlpack(buffer[:count])
        return self._views[key]

    def _call(self, function: str, *arguments: Any) -> np.ndarray:
        import numpy as np

        use_threads(self.threads)
        try:
            return np.from_dlpack(self._functions[function](*arguments))
        except RuntimeError as error:
            raise _failed(function, error) from error


def _failed(function: str, error: RuntimeError) -> InternalError:
    return InternalError(f"the compiled function '{function}' failed", limit=str(error).strip().splitlines()[-1])


def _open_library(ffi: Any, artifact: Artifact) -> tuple[Any, Any]:
    try:
        module = ffi.load_module(str(artifact.library))
        executable = module["vm_load_executable"]()
        executable["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
        for name in artifact.manifest.interface.functions:
            executable[name]
    except (RuntimeError, AttributeError, OSError) as error:
        raise InputError(
            "the artifact's library cannot be loaded",
            where=str(artifact.library),
            limit=str(error).strip().splitlines()[-1],
            remedy="compile the model again",
        ) from error
    return module, executable


def _weights(artifact: Artifact, *, copy: bool) -> list[np.ndarray]:
    tensors = map_tensors(artifact.weights, copy=copy)
    names = artifact.manifest.weights
    if set(tensors) != set(names):
        odd = sorted(set(tensors) ^ set(names))
        raise InputError(
            "the weights file and the manifest name different tensors",
            where=f"{artifact.weights}, {', '.join(odd[:3])}",
            remedy="compile the model again",
        )
    return [tensors[name] for name in names]


def _state(artifact: Artifact) -> list[np.ndarray]:
    import numpy as np

    state = artifact.manifest.state
    needed = sum(math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in state)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UnsupportedError(
            "the cache does not fit into memory",
            where=str(artifact.folder),
            limit=f"it takes {needed} bytes, this machine has {memory}",
            remedy="compile the model with a smaller --context",
        )
    return [aligned_zeros(tensor.shape, tensor.dtype) for tensor in state]
