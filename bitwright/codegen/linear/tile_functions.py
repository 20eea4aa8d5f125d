"""Code that computes tiles of a part, in place or as functions that kernels share.

A plan that cuts matrices into runs of rows makes dozens of kernels, which differ by how long their runs are and not by
what is done to a tile. With functions of any number of tiles LLVM compiles each scheme once instead of once per run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from bitwright.codegen import private
from bitwright.codegen.builder import loop
from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import PackedLayout, TensorSpec
from bitwright.codegen.linear.arguments import Arguments
from bitwright.codegen.linear.decode import decode_float, decode_packed
from bitwright.codegen.linear.prefill import prefill_packed
from bitwright.codegen.linear.prefill_float import prefill_float
from bitwright.codegen.linear.schedule import LinearSchedule
from bitwright.codegen.linear.spec import TOKENS, LinearSpec, activation_tensors, result_tensors
from bitwright.codegen.ordered import loads_in_order
from bitwright.codegen.stack import aligned_stack


def compute_tiles(args: Arguments, first: Any, count: Any) -> None:
    """Emit what computes ``count`` tiles of a part from tile ``first`` on."""
    ordered = args.spec.rows == 1 and args.schedule.ordered
    with loads_in_order(4 * args.layout.lanes) if ordered else nullcontext():
        if isinstance(count, int) and count == 1:
            _generator(args.spec)(args, first)
            return
        with loop(count, start=first) as tile:
            _generator(args.spec)(args, tile)


def _generator(spec: LinearSpec) -> Any:
    if spec.rows == 1:
        return decode_packed if spec.scheme.terms else decode_float
    return prefill_packed if spec.scheme.terms else prefill_float


@dataclass(frozen=True)
class _Tiles:
    """What a function is made for.

    Attributes:
        spec: of a matrix that is the last tile alone, whose rows may be fewer than a tile has.
        blocks: of a tile.
    """

    spec: LinearSpec
    blocks: int
    isa: Isa
    schedule: LinearSchedule

    @property
    def layout(self) -> PackedLayout:
        return PackedLayout(self.spec.outputs, self.spec.inputs, self.spec.scheme.weight, self.isa.lanes, self.blocks)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The function's pointers in order."""
        activations = activation_tensors(self.spec, self.layout).values()
        return (*activations, *self.layout.tensors, *result_tensors(self.spec))


class TileFunctions:
    """The functions that the kernels of one module share."""

    def __init__(self) -> None:
        self._variables: dict[_Tiles, Any] = {}

    def call(self, args: Arguments, first: Any, count: Any) -> None:
        """Emit a call that computes ``count`` tiles of a part from tile ``first`` on."""
        partial = args.layout.outputs % args.layout.rows
        spec = replace(args.spec, outputs=partial or args.layout.rows)
        tiles = _Tiles(spec, args.layout.blocks, args.isa, args.schedule)
        if tiles not in self._variables:
            kind = "decode" if spec.rows == 1 else "prefill"
            name = f"{kind}_tiles_{spec.scheme}_{args.layout.rows}x{spec.inputs}"
            self._variables[tiles] = tvm.ir.GlobalVar(f"{name}_{len(self._variables)}")
        pointers = [args[tensor.name].data for tensor in tiles.tensors]
        scalars = (args.layout.tiles, args.first, args["y"].shape[1], args.tokens, first, count)
        private.call(self._variables[tiles], [*pointers, *(T.cast(value, _SCALAR) for value in scalars)])

    def functions(self) -> dict[Any, Any]:
        """PrimFuncs by global variable, of all that was called."""
        return {variable: _function(tiles, variable.name_hint) for tiles, variable in self._variables.items()}


_SCALAR = "int32"
"""TVM computes in it what fits, arguments of calls included, whatever the function called takes."""

_SCALARS = ("tiles", "column", "columns", "tokens", "first", "count")


def _function(tiles: _Tiles, name: str) -> Any:
    """A function of pointers and ``_SCALARS``: tiles of the part, where its results begin in a row of how many columns,
    tokens, and which tiles are computed."""
    with IRBuilder() as builder, T.prim_func(s_tir=True, is_private=True):
        T.func_name(name)
        pointers = [T.arg(tensor.name, private.pointer(tensor.name, tensor.dtype)) for tensor in tiles.tensors]
        scalars = {name: T.cast(T.arg(name, tirx.Var(name, _SCALAR)), "int64") for name in _SCALARS}
        buffers = {
            tensor.name: T.decl_buffer(_shape(tiles, tensor, scalars), tensor.dtype, data=pointer)
            for tensor, pointer in zip(tiles.tensors, pointers, strict=True)
        }
        args = Arguments(
            tiles.spec,
            tiles.isa,
            tiles.layout,
            tiles.spec.rows or scalars["tokens"],
            buffers,
            scalars["column"],
            tiles.schedule,
            scalars["tiles"],
        )
        with aligned_stack():
            compute_tiles(args, scalars["first"], scalars["count"])
    function = builder.get()
    return private.private_function(function.params, function.body)


def _shape(tiles: _Tiles, tensor: TensorSpec, scalars: Mapping[str, Any]) -> list[Any]:
    """Of a tensor, whose extents in ``tiles`` are those of the last tile."""
    shape = [scalars["tokens"] if extent == TOKENS else T.int64(extent) for extent in tensor.shape]
    if tensor in result_tensors(tiles.spec):  # the part's results are some of a row's columns
        return [*shape[:-1], scalars["columns"]]
    if tensor in tiles.layout.tensors and tensor.name != "codebook":
        return [scalars["tiles"], *shape[1:]]
    return shape
