"""What may be varied in a linear kernel without changing its result: the knobs that tuning turns.

Defaults are what measured best over shapes and widths on a Zen 5 (see docs/results.md); tuning refines them per shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitwright.codegen.isa import Isa
from bitwright.codegen.layout import INPUT_MULTIPLE
from bitwright.codegen.linear.spec import LinearSpec
from bitwright.errors import UsageError

_PREFETCH = (0, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
_CHAIN = (1, 2, 3, 4, 6, 8, 16)
_SPAN = (32, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class LinearSchedule:
    """Knobs of the kernel of one run of outputs.

    Attributes:
        prefetch: bytes ahead in the stream of codes that are asked for while a group is computed; 0 for none.
        chain: most dot products in decoding that wait for each other.
        span: most inputs whose dot products in decoding are straight-line code; longer groups are loops of spans.
    """

    prefetch: int = 0
    chain: int = 4
    span: int = 64

    def __post_init__(self) -> None:
        if self.prefetch < 0 or self.prefetch % 64 or self.chain < 1 or self.span % INPUT_MULTIPLE or self.span < 1:
            raise UsageError(
                f"{self} is no schedule",
                limit=f"prefetch a multiple of 64, chain at least 1, span a multiple of {INPUT_MULTIPLE}",
            )

    def fitting_span(self, group: int) -> int:
        """The longest span of at most ``span`` inputs that divides a group."""
        return next(n for n in range(min(self.span, group), 0, -INPUT_MULTIPLE) if group % n == 0)


Schedules = Callable[[LinearSpec, Isa], LinearSchedule]
"""Chooses the knobs of a kernel: ``default_schedule``, or what tuning found."""


def default_schedule(spec: LinearSpec, isa: Isa) -> LinearSchedule:
    """Good knobs for any shape: hardware prefetchers stop at pages, which narrow codes feel and bytes do not."""
    if spec.rows is None or spec.scheme.weight.is_float:
        return LinearSchedule()
    return LinearSchedule(prefetch=8192 if spec.scheme.weight.bits < 8 else 0)


def decode_space(spec: LinearSpec, isa: Isa) -> dict[str, tuple[int, ...]]:
    """Values of each knob that changes the decode kernel of ``spec``."""
    if spec.scheme.weight.is_float:
        return {}
    if isa.dot == "maddubs":
        return {"prefetch": _PREFETCH}
    group = spec.layout(isa).group
    spans = tuple(span for span in _SPAN if group % span == 0)
    return {"prefetch": _PREFETCH, "chain": _CHAIN, **({"span": spans} if len(spans) > 1 else {})}


def prefill_space(spec: LinearSpec, isa: Isa) -> dict[str, tuple[int, ...]]:
    """Values of each knob that changes the prefill kernel of ``spec``: none yet."""
    return {}


def fixed(schedule: LinearSchedule) -> Schedules:
    """The same knobs for every kernel."""
    return lambda _spec, _isa: schedule
