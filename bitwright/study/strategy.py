"""Strategies: small plugins that turn a problem into a plan, each placed in the taxonomy of the field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from bitwright.errors import UsageError
from bitwright.plan import Plan
from bitwright.study.problem import Problem


@dataclass(frozen=True)
class Coordinates:
    """The five axes that place a method of mixed-precision quantization.

    Attributes:
        tensors: ``W`` (weights), ``A`` (activations), ``KV`` (cache), joined by +: what gets different precisions.
        kind: ``uniform``, ``MPW`` (mixed weights, float activations), ``MPW+UPA`` (mixed weights, activations of one
            precision), ``MPW+MPA`` (both mixed), with ``+MPKV`` when caches are mixed too.
        granularity: ``model``, ``matrix`` or ``tile`` (64 output channels).
        allocation: how the precision is chosen.
        quantizer: what codes are; their values are whatever quantizer the study compiles with.
    """

    tensors: str
    kind: str
    granularity: str
    allocation: str
    quantizer: str = "uniform symmetric, codebook"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Strategy:
    """A plugin.

    Attributes:
        name: unique, of lower-case letters, digits and hyphens: it names files.
        about: one line for people.
        metric: of the profile it wants.
        solve: a problem of that metric to a plan.

            Raises InfeasibleError when no plan fits.
    """

    name: str
    about: str
    coordinates: Coordinates
    solve: Callable[[Problem], Plan]
    metric: str = "fisher"


STRATEGIES: dict[str, Strategy] = {}


def register(strategy: Strategy) -> Strategy:
    """Make a strategy known by its name."""
    if strategy.name in STRATEGIES:
        raise UsageError(f"there are two strategies {strategy.name}", remedy="give one another name")
    STRATEGIES[strategy.name] = strategy
    return strategy


def chosen(patterns: Iterable[str]) -> tuple[Strategy, ...]:
    """Strategies by name or pattern (``greedy-*``), in the order they were registered.

    Raises:
        UsageError: a pattern names none.
    """
    wanted = list(patterns)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in STRATEGIES):
            raise UsageError(
                f"'{pattern}' is no strategy", where="--strategy", limit=", ".join(STRATEGIES), remedy="use one of them"
            )
    return tuple(s for name, s in STRATEGIES.items() if any(fnmatchcase(name, pattern) for pattern in wanted))
