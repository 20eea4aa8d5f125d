"""Assembles a linear kernel: arguments, the loops over the tiles of each part, and the generators that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen.builder import kernel, loop
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.arguments import Arguments, declare, of_parts
from bitwright.codegen.linear.decode import decode_float, decode_packed
from bitwright.codegen.linear.prefill import prefill_packed
from bitwright.codegen.linear.prefill_float import prefill_float
from bitwright.codegen.linear.schedule import Schedules, default_schedule
from bitwright.codegen.linear.spec import AnyLinear, linear_arguments
from bitwright.codegen.team import Phase, TeamKernel

TileBody = Callable[[Any], None]


def prefill_kernel(spec: AnyLinear, isa: Isa, name: str, schedules: Schedules = default_schedule) -> Any:
    """The PrimFunc for any number of tokens: one parallel loop over the tiles of all parts."""
    with kernel(name) as function:
        parts = declare(function, spec, isa, schedules)
        with loop(sum(args.layout.tiles for args in parts), "parallel") as tile:
            _dispatch(parts, tile)
    return function.func


def _dispatch(parts: Sequence[Arguments], tile: Any) -> None:
    """Tile ``tile`` of the first part, or of the others when it has fewer."""
    first, *others = parts
    generator = prefill_packed if first.spec.scheme.terms else prefill_float
    if not others:
        generator(first, tile)
        return
    with T.If(tile < T.int64(first.layout.tiles)):
        with T.Then():
            generator(first, tile)
        with T.Else():
            _dispatch(others, tile - first.layout.tiles)


def team_kernel(spec: AnyLinear, isa: Isa, name: str, schedules: Schedules = default_schedule) -> TeamKernel:
    """One token: the threads share the bytes of all parts, each reading one run of tiles of every part it reaches."""

    def emit(buffers: Mapping[str, Any], thread: Any, threads: Any) -> None:
        parts = of_parts(spec, isa, 1, buffers, schedules)
        total = sum(args.layout.storage_bytes for args in parts)
        before = 0
        for args in parts:
            tile_bytes = args.layout.storage_bytes // args.layout.tiles
            tiles = args.layout.tiles
            bounds = [_tiles_until(at, thread, threads, total, before, tile_bytes, tiles) for at in (0, 1)]
            body = _decode_body(args)
            with loop(bounds[1] - bounds[0], start=bounds[0]) as tile:
                body(tile)
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


def _decode_body(args: Arguments) -> TileBody:
    generator = decode_packed if args.spec.scheme.terms else decode_float
    return lambda tile: generator(args, tile)
