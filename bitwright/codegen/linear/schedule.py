"""What may be varied in a linear kernel without changing its result: the knobs that tuning turns.

Defaults are what measured best over shapes and widths: for prefill and for CPUs of ``isa.NEAREST_CACHE`` on a Zen 5, of
decoding elsewhere on a Zen 4 (see docs/results.md); tuning refines them per shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import INPUT_MULTIPLE, MAX_BLOCKS, PackedLayout
from bitwright.codegen.linear.spec import LinearSpec
from bitwright.errors import UsageError

_PREFETCH = (0, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
_CHAIN = (1, 2, 3, 4, 6, 8, 16)
_SPAN = (32, 64, 96, 128, 192, 256)
_ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
_COLUMNS = (1, 2, 3, 4)
_DEPTH = (192, 288, 576, 1024, 2048, 4096)
_DISTANCE = {1: 8192, 2: 2048}
"""Bytes ahead in the stream of codes that prefetches ask for, by the level of the cache that they go to."""
_DISTANCE_OF_BITS = {8: 0}
"""Into the first cache, of widths that want another."""
_SLOW_DISTANCE = 4096
"""The same into the first cache, where arithmetic takes about as long as memory: it has less to wait for."""
_SLOWEST_BITS = 2
"""Codes that take so long to unpack without VNNI that the order of loads does not matter, and instructions do."""
OPERAND_REGISTERS = 8
"""Besides sums, of which ``can_be_ordered`` holds as many as there are other registers."""
_LOOKUP_GROUP = 32  # longer groups have fewer products of scales than a table costs


@dataclass(frozen=True)
class LinearSchedule:
    """Knobs of the kernel of one run of outputs.

    Attributes:
        prefetch: bytes ahead in the stream of codes that are asked for while a group is computed; 0 for none.
        prefetch_level: of the cache that they are asked into, 1 or 2.
        chain: most dot products in decoding that wait for each other.
        span: most inputs whose dot products in decoding are straight-line code; longer groups are loops of spans.
        ordered: decoding reads codes strictly in the order of memory (``ordered_sums``); ``chain`` does not matter
            then.
        rows, columns: tokens and vectors of outputs that prefill computes at a time in registers.
        depth: most inputs that prefill unpacks at a time (at least a group).
        lookup: prefill looks products of scales up, where target and activations allow it (``scale_table``).
    """

    prefetch: int = 0
    prefetch_level: int = 1
    chain: int = 4
    span: int = 32
    ordered: bool = False
    rows: int = 3
    columns: int = 4
    depth: int = 576
    lookup: bool = False

    def __post_init__(self) -> None:
        if self.prefetch < 0 or self.prefetch % 64 or self.prefetch_level not in (1, 2):
            raise UsageError(f"{self} is no schedule", limit="prefetch a multiple of 64, its level 1 or 2")
        if self.chain < 1 or self.span % INPUT_MULTIPLE or self.span < 1:
            raise UsageError(f"{self} is no schedule", limit=f"chain at least 1, span a multiple of {INPUT_MULTIPLE}")
        if self.rows < 1 or self.columns < 1 or self.depth < 1:
            raise UsageError(f"{self} is no schedule", limit="at least one row, column and input")

    def fitting_span(self, group: int) -> int:
        """The longest span of at most ``span`` inputs that divides a group."""
        return next(n for n in range(min(self.span, group), 0, -INPUT_MULTIPLE) if group % n == 0)

    def fitting_groups(self, layout: PackedLayout, columns: int = MAX_BLOCKS) -> int:
        """The most groups of at most ``depth`` inputs together that divide those of a row; one at least.

        Args:
            columns: vectors of outputs that are unpacked together; of more than a tile has, fewer inputs.
        """
        depth = self.depth * MAX_BLOCKS // max(columns, MAX_BLOCKS)
        most = min(max(depth // layout.group, 1), layout.groups)
        return next(n for n in range(most, 0, -1) if layout.groups % n == 0)


Schedules = Callable[[LinearSpec, Isa], LinearSchedule]
"""Chooses the knobs of a kernel: ``default_schedule``, or what tuning found."""


def default_schedule(spec: LinearSpec, isa: Isa) -> LinearSchedule:
    """Good knobs for any shape."""
    if spec.scheme.weight.is_float:
        return LinearSchedule()
    if spec.rows is None:
        rows, columns = _register_block(spec, isa)
        if spec.layout(isa).group > _LOOKUP_GROUP or not isa.scale_exponent or spec.scheme.terms != 1:
            return LinearSchedule(rows=rows, columns=columns)
        # The table of scales shares the nearest cache with the unpacked codes.
        return LinearSchedule(rows=rows, columns=columns, depth=LinearSchedule.depth // 2, lookup=True)
    return _decode_schedule(spec, isa)


def _decode_schedule(spec: LinearSpec, isa: Isa) -> LinearSchedule:
    level, bits, ordered = isa.prefetch_level, spec.scheme.weight.bits, can_be_ordered(spec, isa)
    if level == 1:  # measured before loads could be ordered
        return LinearSchedule(prefetch=_DISTANCE_OF_BITS.get(bits, _DISTANCE[level]), prefetch_level=level)
    if isa.dot == "maddubs":
        return LinearSchedule(prefetch=_SLOW_DISTANCE, prefetch_level=1, ordered=ordered and bits > _SLOWEST_BITS)
    ordered = ordered and isa.registers > 16  # not measured with fewer
    return LinearSchedule(prefetch=0 if ordered else _DISTANCE[level], prefetch_level=level, ordered=ordered)


def _register_block(spec: LinearSpec, isa: Isa) -> tuple[int, int]:
    """Rows and columns whose sums, of every term, and results fit the registers."""
    blocks, terms = spec.layout(isa).blocks, spec.scheme.terms
    if isa.dot == "maddubs":
        # Each activation is a broadcast load, which costs no arithmetic; wider codes need registers for shorter chains.
        return (10 if spec.scheme.weight.operand_bits <= 4 else 8) // terms, 1
    if isa.registers > 16:
        columns = min(blocks, 4)
        return (12 if terms == 1 else 8) // columns, columns
    if terms == 2:
        return 4, 1
    return (2, 3) if blocks == 3 else (4, 2)


def can_be_ordered(spec: LinearSpec, isa: Isa) -> bool:
    """The integer sums of every position, block and term fit the registers, beside what is multiplied.

    Sums of bounded chains are two: the chain's, and what it is added to.
    """
    layout = spec.layout(isa)
    if isa.dot == "vnni":
        each = len(set(layout.positions))
    else:
        each = 1 if spec.scheme.weight.operand_bits == 8 else 2
    sums = each * layout.blocks * spec.scheme.terms
    return isa.dot != "portable" and sums <= isa.registers - OPERAND_REGISTERS


def decode_space(spec: LinearSpec, isa: Isa) -> dict[str, tuple[int, ...]]:
    """Values of each knob that changes the decode kernel of ``spec``; ``chain`` does where it is not ``ordered``."""
    if spec.scheme.weight.is_float:
        return {}
    group = spec.layout(isa).group
    spans = tuple(span for span in _SPAN if group % span == 0)
    return {
        "prefetch": _PREFETCH,
        "prefetch_level": (1, 2),
        **({} if isa.dot == "maddubs" else {"chain": _CHAIN}),
        **({"ordered": (False, True)} if can_be_ordered(spec, isa) else {}),
        **({"span": spans} if len(spans) > 1 else {}),
    }


def prefill_space(spec: LinearSpec, isa: Isa) -> dict[str, tuple[int, ...]]:
    """Values of each knob that changes the prefill kernel of ``spec``."""
    if spec.scheme.weight.is_float:
        return {}
    columns = tuple(count for count in _COLUMNS if count <= spec.layout(isa).blocks)
    layout = spec.layout(isa)
    default = default_schedule(spec, isa).fitting_groups(layout)
    depths = {LinearSchedule(depth=depth).fitting_groups(layout): depth for depth in _DEPTH}
    depths[default] = default_schedule(spec, isa).depth
    return {
        "rows": _ROWS,
        "columns": columns,
        **({"lookup": (False, True)} if isa.scale_exponent and spec.scheme.terms == 1 else {}),
        **({"depth": tuple(sorted(depths.values()))} if len(depths) > 1 else {}),
    }


def fixed(schedule: LinearSchedule) -> Schedules:
    """The same knobs for every kernel."""
    return lambda _spec, _isa: schedule
