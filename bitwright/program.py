"""The program a compilation transforms: a Relax module, the tensors it reads and what passes found out about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.plan import Plan
from bitwright.site import Site

if TYPE_CHECKING:
    from bitwright.codegen.step.program import StepProgram
    from bitwright.codegen.team import TeamKernel

# Tokens that share one vector of a K cache: its layout is [heads, capacity / 16, head size, 16].
CACHE_BLOCK = 16


@dataclass(frozen=True)
class CacheShape:
    """One layer's cache: K is (kv_heads, tokens, head_dim), V is (kv_heads, tokens, value_dim)."""

    kv_heads: int
    head_dim: int
    value_dim: int


TOKEN_RANK = "token_rank"
"""Name of the parameter int32 [tokens] that holds each token's row of the table, where rows have an order of their
own."""


@dataclass(frozen=True)
class Parameter:
    """A tensor of the model that is a parameter of the Relax functions.

    Attributes:
        name: unique name.
        shape, dtype: as Relax sees it; matrices of linear layers are [outputs, inputs] until they are packed.
        load: reads or computes the array (C-contiguous) when asked.
        parts: names of the parameters whose rows are stacked in this one; empty for one that is in the model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray[Any, Any]]
    parts: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Step:
    """The decode step outside the VM: see ``codegen.step``.

    Attributes:
        program: its operations.
        workers: PrimFuncs by name that the operations call.
        vocab: number of logits.
    """

    program: StepProgram
    workers: Mapping[str, Any]
    vocab: int


@dataclass(frozen=True)
class Program:
    """What goes from phase to phase. Passes return a new one.

    Attributes:
        module: ``tvm.IRModule`` with ``prefill``, ``decode``, ``score`` (decoder) or ``encode`` (encoder).
        parameters: name to tensor; every parameter of a function that is neither input nor state is in here.
        caches: shape of each cached attention's K and V.
        capacity: tokens the caches hold, a multiple of CACHE_BLOCK.
        kind: ``decoder`` or ``encoder``.
        sites: found by ``find_sites``.
        rotary_tables: parameters that are cos or sin tables, of which a token reads one row; set by ``find_sites``.
        prefill_macs: multiply-adds of the linear layers for every token of a prompt, and for the last of a chunk alone;
            set by ``find_sites``.
        plan: set by ``annotate``.
        team_kernels: kernels of ``decode`` that threads can share, by the name of their function in the module.
        tile_functions: PrimFuncs by global variable that kernels call and Relax does not see; set by ``lower``.
        step: the decode step, once ``flatten_decode`` has taken it out of the module.
        step_refused: why it could not; empty if it did.
        events: what passes want the report to say (counts of fallbacks, fusions), by pass name.
    """

    module: Any
    parameters: Mapping[str, Parameter]
    caches: tuple[CacheShape, ...]
    capacity: int
    kind: str
    sites: tuple[Site, ...] = ()
    rotary_tables: frozenset[str] = frozenset()
    prefill_macs: tuple[int, int] = (0, 0)
    plan: Plan | None = None
    team_kernels: Mapping[str, TeamKernel] = field(default_factory=dict)
    tile_functions: Mapping[Any, Any] = field(default_factory=dict)
    step: Step | None = None
    step_refused: str = ""
    events: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
