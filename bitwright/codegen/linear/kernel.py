"""Assembles a linear kernel: arguments, and which tiles of which part are computed by whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import kernel, loop
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.arguments import Arguments, declare, of_parts
from bitwright.codegen.linear.schedule import Schedules, default_schedule
from bitwright.codegen.linear.spec import AnyLinear, MixedSpec, linear_arguments
from bitwright.codegen.linear.tile_functions import TileFunctions, compute_tiles
from bitwright.codegen.team import Phase, TeamKernel

Compute = Callable[[Arguments, Any, Any], None]
"""Emits what computes tiles of a part: (part, first tile, number of tiles)."""


def prefill_kernel(
    spec: AnyLinear,
    isa: Isa,
    name: str,
    schedules: Schedules = default_schedule,
    shared: TileFunctions | None = None,
) -> Any:
    """The PrimFunc for any number of tokens: one parallel loop over the tiles of all parts."""
    with kernel(name) as function:
        parts = declare(function, spec, isa, schedules)
        with loop(sum(args.layout.tiles for args in parts), "parallel") as tile:
            _dispatch(parts, tile, _compute(spec, shared))
    return function.func


def _compute(spec: AnyLinear, shared: TileFunctions | None) -> Compute:
    """Where there are several parts, others differ from them by their lengths alone: their code is shared."""
    return shared.call if shared is not None and isinstance(spec, MixedSpec) else compute_tiles


def _dispatch(parts: Sequence[Arguments], tile: Any, compute: Compute) -> None:
    """Tile ``tile`` of the first part, or of the others when it has fewer."""
    first, *others = parts
    if not others:
        compute(first, tile, 1)
        return
    with T.If(tile < T.int64(first.layout.tiles)):
        with T.Then():
            compute(first, tile, 1)
        with T.Else():
            _dispatch(others, tile - first.layout.tiles, compute)


def team_kernel(
    spec: AnyLinear,
    isa: Isa,
    name: str,
    schedules: Schedules = default_schedule,
    shared: TileFunctions | None = None,
) -> TeamKernel:
    """One token: the threads share the bytes of all parts, each reading one run of tiles of every part it reaches."""
    compute = _compute(spec, shared)

    def emit(buffers: Mapping[str, Any], thread: Any, threads: Any) -> None:
        parts = of_parts(spec, isa, 1, buffers, schedules)
        total = sum(args.layout.storage_bytes for args in parts)
        before = 0
        for args in parts:
            tile_bytes = args.layout.storage_bytes // args.layout.tiles
            tiles = args.layout.tiles
            bounds = [_tiles_until(at, thread, threads, total, before, tile_bytes, tiles) for at in (0, 1)]
            compute(args, bounds[0], bounds[1] - bounds[0])
            before += args.layout.storage_bytes

    return TeamKernel(name, linear_arguments(spec, isa), 1, (Phase(emit),))


def _tiles_until(at: int, thread: Any, threads: Any, total: int, before: int, tile_bytes: int, tiles: int) -> Any:
    """Tiles of a part that lie before the share of thread ``thread + at``, when ``before`` bytes lie before the part.

    The same formula gives the end of one share and the start of the next, so that every tile is computed once.
    """
    if isinstance(threads, int) and threads == 1:
        return T.int64(tiles if at else 0)
    share = T.floordiv((thread + T.int64(at)) * total, _int64(threads))
    reached = T.floordiv(T.max(share - T.int64(before), T.int64(0)) + T.int64(tile_bytes // 2), T.int64(tile_bytes))
    return T.min(reached, T.int64(tiles))


def _int64(value: Any) -> Any:
    return T.int64(value) if isinstance(value, int) else value
