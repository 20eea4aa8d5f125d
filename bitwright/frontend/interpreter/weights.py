"""A graph's weights as tensors: in memory while they are few, else read from the model whenever a node needs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    import torch

RESIDENT_BYTES = 1 << 31
"""Weights that take more than this together are not kept. Reading them again for every window of 512 tokens takes about
a quarter of the time that the window's products take."""


class Weights(MutableMapping[str, "torch.Tensor"]):
    """Initializers by name. What is assigned under a name is kept; deleting it brings the model's own weight back.

    Only tensors that their source makes anew whenever they are asked for (``ir.LazyTensor``) are ever left out of
    memory: all others lie in memory, or in a mapped file, anyway.
    """

    def __init__(
        self,
        initializers: Mapping[str, ir.Value],
        read: Callable[[str], torch.Tensor],
        resident: int | None = RESIDENT_BYTES,
    ) -> None:
        """``read``: gives an initializer as a tensor. ``resident``: most bytes to keep; None: keep everything."""
        lazy = {n: v.const_value for n, v in initializers.items() if isinstance(v.const_value, ir.LazyTensor)}
        keep = resident is None or sum(tensor.nbytes for tensor in lazy.values()) <= resident
        self._names = dict.fromkeys(initializers)
        self._far: frozenset[str] = frozenset() if keep else frozenset(lazy)
        self._read = read
        self._held = {name: read(name) for name in initializers if name not in self._far}
        self._changed: dict[str, torch.Tensor] = {}
        self._lent: dict[int, tuple[Any, str]] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        for tensors in (self._changed, self._held):
            if name in tensors:
                return tensors[name]
        if name not in self._far:
            raise KeyError(name)
        return self._lend(name)

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self._changed[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self._changed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._changed

    def __iter__(self) -> Iterator[str]:
        return iter({**self._names, **dict.fromkeys(self._changed)})

    def __len__(self) -> int:
        return len({*self._names, *self._changed})

    @contextmanager
    def resident(self) -> Iterator[None]:
        """Keep all weights inside the block: for many runs of few tokens."""
        before = self._held
        self._held = {**before, **{name: self._read(name) for name in self._far}}
        try:
            yield
        finally:
            self._held = before

    def reread(self) -> AbstractContextManager[Any]:
        """While it is open, autograd remembers the names of weights that are not kept, and reads them again."""
        import torch

        if not self._far:
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _lend(self, name: str) -> torch.Tensor:
        from torch.multiprocessing.reductions import StorageWeakRef

        tensor = self._read(name)
        storage = tensor.untyped_storage()
        self._lent[storage.data_ptr()] = (StorageWeakRef(storage), name)  # type: ignore[no-untyped-call]
        return tensor

    def _pack(self, tensor: torch.Tensor) -> Any:
        """A lent weight, or a view of one, as its name and place; anything else as it is."""
        storage, name = self._lent.get(tensor.untyped_storage().data_ptr(), (None, ""))
        # The address of a weight that is gone may belong to another tensor now.
        if storage is None or storage.expired():
            return tensor
        return name, tensor.shape, tensor.stride(), tensor.storage_offset()

    def _unpack(self, packed: Any) -> torch.Tensor:
        if not isinstance(packed, tuple):
            return packed  # type: ignore[no-any-return]
        name, shape, stride, offset = packed
        return self._read(name).as_strided(shape, stride, offset)
