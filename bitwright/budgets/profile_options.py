"""How a model is profiled: candidates, calibration, and what is done to the model first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitwright.errors import UsageError
from bitwright.options import QuantizerName
from bitwright.rotated_parts import Part
from bitwright.scheme import BITS, CacheScheme, WeightScheme

DEFAULT_WEIGHTS = ("c2g32", "c3g64", "c3g32", "u4g32", "c4g64", "c4g32", "u5g64", "u6g64", "u8g64")
"""About half a bit apart. At equal bytes a codebook is better than uniform codes up to four bits."""

DEFAULT_TABLE_WEIGHTS = ("c2row", "c3row")
"""Of the token table besides: where tokens are rare, even a scale per group is too dear."""

DEFAULT_CACHES = (
    *(f"{tensor}{bits}{how}r32" for tensor in "kv" for how in ("g32", "rowm") for bits in BITS),
    *(f"k{widths}rowmr32" for widths in ("3-2", "4-2", "4-3", "5-3", "5-4", "6-4")),
)
"""As they are and mapped: maps save a bit or more, and cost a multiplication of every head at run time. The tokens of a
run of 32 see each other exactly: for the bytes of 32 tokens in 16 bits that saves another (docs/decisions.md)."""

MEMORY_BYTES = 1 << 30
"""Inputs and gradients in memory at a time."""


@dataclass(frozen=True)
class ProfileOptions:
    """How to profile.

    Attributes:
        target: a name that ``Target.parse`` knows.
        schemes: names of weight and cache schemes; None: DEFAULT_WEIGHTS and DEFAULT_CACHES.
        table_schemes: names of further weight schemes, for token tables and what makes the logits; None:
            DEFAULT_TABLE_WEIGHTS if ``schemes`` is None too, else none.
        metric: name of a sensitivity metric.
        quantizer: how weights become codes.
        calibration: a text file; None: text that the model samples itself.
        rotate, equalise, reorder, weigh_tokens: as of a compilation.
        tokens: most tokens that gradients are taken at.
        seed: of sampled labels.
        jobs: schemes that are quantized and scored at a time; does not change the result.
        memory: bytes of inputs and gradients in memory.
        codes: folder that keeps codes for measuring and compiling; None: they are thrown away.
    """

    target: str = "native"
    schemes: tuple[str, ...] | None = None
    table_schemes: tuple[str, ...] | None = None
    metric: str = "fisher"
    quantizer: QuantizerName = "auto"
    calibration: Path | None = None
    rotate: tuple[Part, ...] = ()
    equalise: bool = False
    reorder: bool = False
    weigh_tokens: bool = False
    tokens: int = 4096
    seed: int = 0
    jobs: int = 1
    memory: int = MEMORY_BYTES
    codes: Path | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.jobs < 1:
            raise UsageError(f"{self.tokens} tokens, {self.jobs} jobs", limit="at least 1 of each")
        _ = self.weights, self.table_weights, self.caches, self.recent

    @property
    def weights(self) -> tuple[WeightScheme, ...]:
        """Candidates for matrices."""
        names = DEFAULT_WEIGHTS if self.schemes is None else [s for s in self.schemes if s[:1] not in ("k", "v")]
        return tuple(WeightScheme.parse(name) for name in names)

    @property
    def table_weights(self) -> tuple[WeightScheme, ...]:
        """Candidates for matrices with a row per token, besides those of all."""
        names = self.table_schemes
        if names is None:
            names = DEFAULT_TABLE_WEIGHTS if self.schemes is None else ()
        found = tuple(WeightScheme.parse(name) for name in names)
        return tuple(scheme for scheme in dict.fromkeys(found) if scheme not in self.weights)

    @property
    def caches(self) -> tuple[CacheScheme, ...]:
        """Candidates for caches; 16 bits are always one."""
        named = DEFAULT_CACHES if self.schemes is None else [s for s in self.schemes if s[:1] in ("k", "v")]
        return tuple(CacheScheme.parse(name) for name in dict.fromkeys((*named, "k16", "v16")))

    @property
    def recent(self) -> int:
        """Tokens of a run that all packed candidates keep exact: gradients are those of what later runs see.

        Raises:
            UsageError: they keep different numbers of tokens.
        """
        runs = sorted({scheme.recent for scheme in self.caches if not scheme.is_float})
        if len(runs) > 1:
            raise UsageError(
                f"cache schemes that keep {' and '.join(map(str, runs))} recent tokens",
                where="--schemes",
                limit="all packed ones of a profile keep equally many",
                remedy=f"end the name of each in r{runs[-1]}, or of none",
            )
        return runs[0] if runs else 0
