"""Budgets, and the answer to them: a plan, what it is predicted to cost, and how far from the optimum it can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bitwright.errors import UsageError
from bitwright.plan import Plan
from bitwright.runs import Scheme

Resource = Literal["kl", "bytes", "decode_ms", "prefill_ms"]
RESOURCES: tuple[Resource, ...] = ("kl", "bytes", "decode_ms", "prefill_ms")
"""What every choice uses some of. ``kl``: nats per token; ``bytes``: stored weights, and caches where they count."""

Grain = Literal["tile", "matrix"]


@dataclass(frozen=True)
class Budgets:
    """Upper bounds; None: unbounded. Under them ``minimise`` becomes as small as possible.

    Attributes:
        max_bytes: of the weights' file as stored, and of the cache of ``context`` tokens if ``context`` is given.
        max_decode_ms: of one token after ``context`` others; ``max_prefill_ms``: of a prompt of ``prompt`` tokens.
        max_kld: expected divergence from the float model, nats per token.
        avg_bits: bits of storage per parameter of all matrices; a convenience that becomes a bound on bytes.
        context: tokens in the cache. None: the cache does not count and stays at 16 bits.
        prompt: tokens of the prompt that prefill is counted for.
        minimise: what is minimised; None: ``kl``, or ``bytes`` when ``max_kld`` is given.
    """

    max_bytes: int | None = None
    max_decode_ms: float | None = None
    max_prefill_ms: float | None = None
    max_kld: float | None = None
    avg_bits: float | None = None
    context: int | None = None
    prompt: int = 512
    minimise: Resource | None = None

    def __post_init__(self) -> None:
        bounds = (self.max_bytes, self.max_decode_ms, self.max_prefill_ms, self.max_kld, self.avg_bits)
        if all(bound is None for bound in bounds):
            raise UsageError(
                "no budget was given",
                limit="--max-bytes, --max-decode-ms, --max-prefill-ms, --max-kld or --avg-bits",
                remedy="give at least one, such as --max-bytes 60MB",
            )
        if any(bound is not None and not bound > 0 for bound in bounds):
            raise UsageError("a budget is not positive", limit="above 0")
        if self.context is not None and self.context < 1:
            raise UsageError(f"a context of {self.context} tokens", limit="at least 1", remedy="leave --context out")
        if self.minimise is not None and self.minimise not in RESOURCES:
            raise UsageError(f"'{self.minimise}' cannot be minimised", where="--minimise", limit=", ".join(RESOURCES))
        if self.objective == "kl" and self.max_kld is not None:
            raise UsageError("the divergence is bounded and minimised", remedy="minimise bytes or decode_ms instead")

    @property
    def objective(self) -> Resource:
        return self.minimise or ("kl" if self.max_kld is None else "bytes")

    @property
    def limits(self) -> dict[Resource, float]:
        """The bounds that were given, except ``avg_bits``."""
        bounds: dict[Resource, float | None] = {
            "kl": self.max_kld,
            "bytes": self.max_bytes,
            "decode_ms": self.max_decode_ms,
            "prefill_ms": self.max_prefill_ms,
        }
        return {name: float(bound) for name, bound in bounds.items() if bound is not None}

    def to_json(self) -> dict[str, Any]:
        """What was given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Decision:
    """One site's scheme and what it uses: resource name to amount (whole site)."""

    site: str
    scheme: Scheme
    uses: Mapping[Resource, float]


@dataclass(frozen=True)
class Allocation:
    """A plan that meets budgets.

    Attributes:
        plan: its notes hold all that ``to_json`` says, so that the plan file explains itself.
        budgets: what was asked for.
        bytes: of the weights' file of the artifact, exactly.
        kv_bytes_per_token: of the cache.
        kv_fixed_bytes: of the cache besides, at any context: tokens that are kept exact.
        predicted: ``kl``, and ``decode_ms`` and ``prefill_ms`` where latencies are known.
        gap: how much lower than the plan's the objective of any plan could be at most, as a share of the plan's.
        binding: names of the bounds that hold the objective back.
        prices: resource name to what one more unit of it would save of the objective (Lagrange multipliers).
        decisions: by site, in the model's order.
        measured: what was measured of the plan, such as ``measured_kl``; empty if nothing was.
    """

    plan: Plan
    budgets: Budgets
    bytes: int
    kv_bytes_per_token: int
    kv_fixed_bytes: int
    predicted: Mapping[str, float]
    gap: float
    binding: tuple[Resource, ...]
    prices: Mapping[Resource, float]
    decisions: tuple[Decision, ...] = field(default=(), repr=False)
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Of the objective."""
        return self.bytes if self.budgets.objective == "bytes" else self.predicted[self.budgets.objective]

    def to_json(self) -> dict[str, Any]:
        """The document of ``bitwright allocate --json``."""
        return {
            "bytes": self.bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_fixed_bytes": self.kv_fixed_bytes,
            "predicted": dict(self.predicted),
            **({"measured": dict(self.measured)} if self.measured else {}),
            "gap": self.gap,
            "binding": list(self.binding),
            "prices": dict(self.prices),
            "budgets": self.budgets.to_json(),
            "objective": self.budgets.objective,
        }
