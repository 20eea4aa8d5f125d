"""What an attention kernel is built for. No TVM here: passes read and make these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitwright.codegen.cache import CacheSpec
from bitwright.codegen.checks import check_lanes, check_positive
from bitwright.codegen.columns import Columns
from bitwright.codegen.isa import GENERIC, Isa
from bitwright.errors import UnsupportedError


def _check_heads(heads: int, kv_heads: int) -> None:
    check_positive("heads", heads)
    if heads % kv_heads:
        raise UnsupportedError(
            f"{heads} query heads on {kv_heads} key/value heads",
            where="attention spec",
            limit="query heads are a multiple of key/value heads",
            remedy="check q_num_heads and kv_num_heads",
        )


@dataclass(frozen=True)
class AttentionSpec:
    """Causal attention over a cache.

    Attributes:
        heads: query heads, a multiple of the cache's kv_heads; head h reads key/value head h // (heads / kv_heads).
        cache: layout of the cache it reads.
        scale: factor of the scores.
        softcap: scores become softcap * tanh(score / softcap); 0 for none.
        window: a query sees the last ``window`` positions, its own included; 0 for all.
        rows: 1 for a decode kernel, None for a symbolic number of tokens.
        isa: the target's vectors and its byte dot product.
        threads: parts that long work is divided into.
        key_source, value_source: for prompts and caches that keep recent tokens, which read k and v as well: columns of
            wider matrices that they are.
    """

    heads: int
    cache: CacheSpec
    scale: float
    softcap: float = 0.0
    window: int = 0
    rows: Literal[1] | None = None
    isa: Isa = GENERIC
    threads: int = 2
    key_source: Columns | None = None
    value_source: Columns | None = None

    def __post_init__(self) -> None:
        _check_heads(self.heads, self.cache.kv_heads)
        check_lanes(self.isa.lanes)
        check_positive("threads", self.threads)
        if self.softcap < 0 or self.window < 0:
            raise UnsupportedError(
                f"attention with softcap {self.softcap} and window {self.window}",
                where="attention spec",
                limit="neither is negative; 0 means none",
                remedy="check the model's configuration",
            )

    @property
    def reads_rows(self) -> bool:
        """The kernel takes k and v besides the caches: prompts of caches that keep recent tokens."""
        return self.rows is None and self.cache.recent > 0

    @property
    def sources(self) -> tuple[Columns, Columns]:
        """The columns that k and v are of their matrices."""
        return self.cache.sources(self.key_source, self.value_source)

    @property
    def lanes(self) -> int:
        """float32 lanes of a vector."""
        return self.isa.lanes

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.cache.kv_heads

    @property
    def name(self) -> str:
        window = f"_window{self.window}" if self.window else ""
        return f"attention_{self.heads}on{self.cache.name}{window}{'_decode' if self.rows == 1 else ''}"


@dataclass(frozen=True)
class FullAttentionSpec:
    """Attention of every token to every token (an encoder), no cache or mask; see :class:`AttentionSpec`."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    softcap: float = 0.0
    lanes: int = 8
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("kv_heads", "head_dim", "value_dim", "threads"):
            check_positive(name, getattr(self, name))
        _check_heads(self.heads, self.kv_heads)
        check_lanes(self.lanes)

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def name(self) -> str:
        return f"attention_full_{self.heads}x{self.head_dim}"
