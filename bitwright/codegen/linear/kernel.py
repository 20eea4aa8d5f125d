"""Assembles a linear kernel: arguments, the loop over tiles, and the generator that fits the spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bitwright.codegen.builder import kernel, loop
from bitwright.codegen.isa import Isa
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.decode import (
    decode_float,
    decode_int8,
    decode_packed_float,
    prepare_float_activations,
)
from bitwright.codegen.linear.prefill import prefill_float, prefill_int8
from bitwright.codegen.linear.spec import LinearSpec, linear_arguments
from bitwright.codegen.team import Phase, TeamKernel, share

PARALLEL_DECODE_BYTES = 128 * 1024
"""Smaller matrices are read by one core: starting a parallel loop costs about as much as reading this much."""


def linear_kernel(spec: LinearSpec, isa: Isa, name: str) -> Any:
    """The PrimFunc of a legal spec."""
    with kernel(name) as function:
        args = Arguments.declare(function, spec, isa)
        tile_body = _tile_body(args)
        many = args.layout.tiles > 1 and (spec.rows is None or args.layout.storage_bytes >= PARALLEL_DECODE_BYTES)
        with loop(args.layout.tiles, "parallel" if many else "serial") as tile:
            tile_body(tile)
    return function.func


def linear_team_kernel(spec: LinearSpec, isa: Isa, name: str) -> TeamKernel:
    """One token: the threads share the tiles."""

    def emit(buffers: Mapping[str, Any], thread: Any, threads: Any) -> None:
        args = Arguments(spec, isa, spec.layout(isa), 1, dict(buffers))
        tile_body = _tile_body(args)
        start, end = share(args.layout.tiles, thread, threads)
        with loop(end - start, start=start) as tile:
            tile_body(tile)

    return TeamKernel(name, linear_arguments(spec, isa), 1, (Phase(emit),))


def _tile_body(args: Arguments) -> Callable[[Any], None]:
    spec = args.spec
    if spec.scheme.activation.bits == 8:
        generator = prefill_int8 if spec.rows is None else decode_int8
        return lambda tile: generator(args, tile)
    if spec.rows is None:
        return lambda tile: prefill_float(args, tile)
    if spec.scheme.weight.is_float:
        return lambda tile: decode_float(args, tile)
    weighted, sums = prepare_float_activations(args)
    return lambda tile: decode_packed_float(args, tile, weighted, sums)
