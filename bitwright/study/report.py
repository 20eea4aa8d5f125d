"""What a study found, as rows: for a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.study.cell import Cell

REPORT_VERSION = 1
NATS = "nats per token"


@dataclass(frozen=True)
class Row:
    """A cell with its measurements; None: not measured (yet).

    Attributes:
        quality: the keys of ``bitwright eval --json``; speed: rows of ``bitwright bench --json``.
        context: cached tokens that count, if they do.
    """

    cell: Cell
    quality: Mapping[str, Any] | None
    speed: Mapping[str, Any] | None
    context: int | None = None

    @property
    def bytes(self) -> int | None:
        """Of the artifact's weights, measured where it was compiled, else as the plan says."""
        measured = self.quality or self.speed
        if measured is not None:
            return int(measured["bytes"])
        return None if self.cell.plan is None else int(self.cell.plan.notes["bytes"])

    @property
    def cache_bytes(self) -> int | None:
        """Of the cache at the tokens that count; None if none do, or before anything was measured."""
        measured = self.quality or self.speed
        if measured is None or not self.context:
            return None
        return self.context * int(measured["kv_bytes_per_token"]) + int(measured.get("kv_fixed_bytes", 0))

    @property
    def predicted(self) -> Mapping[str, float]:
        return {} if self.cell.plan is None else self.cell.plan.notes["predicted"]

    @property
    def predicted_kl(self) -> float | None:
        """None where the metric's losses only compare."""
        return self.predicted.get("kl") if self.cell.unit == NATS else None

    @property
    def kl(self) -> float | None:
        return None if self.quality is None else float(self.quality["kl"]["mean"])

    def tokens_per_second(self, kind: str, depth: int = 0) -> float | None:
        """Median of decoding (``tg``) or prompts (``pp``)."""
        rows = [] if self.speed is None else self.speed["rows"]
        found = [row for row in rows if row["test"].startswith(kind) and row["depth"] == depth]
        return float(found[0]["tokens_per_second"]["median"]) if found else None

    @property
    def deepest(self) -> int | None:
        """Most cached tokens that decoding was measured behind, if any."""
        rows = [] if self.speed is None else self.speed["rows"]
        return max((row["depth"] for row in rows if row["test"].startswith("tg")), default=0) or None

    @property
    def decode_ms(self) -> float | None:
        """Of one token behind an empty cache."""
        rate = self.tokens_per_second("tg")
        return None if rate is None else 1e3 / rate

    def to_json(self) -> dict[str, Any]:
        cell = self.cell
        return {
            "name": cell.name,
            "strategy": cell.strategy.name,
            "metric": cell.strategy.metric,
            "coordinates": cell.strategy.coordinates.to_json(),
            "max_bytes": cell.max_bytes,
            "solved_for": cell.solved_for,
            "target": cell.target,
            "infeasible": cell.infeasible or None,
            "bytes": self.bytes,
            "cache_bytes": self.cache_bytes,
            "predicted": dict(self.predicted),
            "quality": None if self.quality is None else dict(self.quality),
            "speed": None if self.speed is None else dict(self.speed),
        }

    def flat(self) -> dict[str, Any]:
        """One value per column; what is missing is empty."""
        quality = self.quality or {}
        return {
            "strategy": self.cell.strategy.name,
            **self.cell.strategy.coordinates.to_json(),
            "max_bytes": self.cell.max_bytes,
            "solved_for": self.cell.solved_for,
            "target": self.cell.target,
            "bytes": self.bytes,
            "cache_bytes": self.cache_bytes,
            "predicted_kl": self.predicted_kl,
            "kl_mean": self.kl,
            "kl_p99": quality["kl"]["p99"] if quality else None,
            "perplexity": quality.get("perplexity"),
            "top1": quality.get("top1"),
            "decode_tokens_per_second": self.tokens_per_second("tg"),
            "prefill_tokens_per_second": self.tokens_per_second("pp"),
            "depth": self.deepest,
            "decode_tokens_per_second_there": self.tokens_per_second("tg", self.deepest) if self.deepest else None,
        }


@dataclass(frozen=True)
class Report:
    """All rows of a study, and what it was asked."""

    model: str
    digest: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """``results.json``"""
        return {
            "report_version": REPORT_VERSION,
            "model": self.model,
            "digest": self.digest,
            "rows": [row.to_json() for row in self.rows],
        }

    def to_csv(self) -> str:
        buffer = io.StringIO()
        rows = [row.flat() for row in self.rows]
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    def table(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """Columns and cells for people; the columns of targets, caches and depths only if the study is about them."""
        flat = [row.flat() for row in self.rows]
        hidden = set() if len({row["target"] for row in flat}) > 1 else {"solved_for", "target"}
        optional = ("cache_bytes", "depth", "decode_tokens_per_second_there")
        hidden |= {key for key in optional if all(row[key] is None for row in flat)}
        shown = [column for column in COLUMNS if column.key not in hidden]
        return tuple(column.name for column in shown), [[c.text(row) for c in shown] for row in flat]


@dataclass(frozen=True)
class Column:
    """A column of the table: its name, format, and factor."""

    name: str
    key: str
    form: str = ""
    factor: float = 1.0

    def text(self, flat: Mapping[str, Any]) -> str:
        """The cell of a row as ``Row.flat`` gives it."""
        value = flat[self.key]
        if value is None:
            return "-"
        return str(value) if not self.form else format(value * self.factor, self.form)


COLUMNS: Sequence[Column] = (
    Column("strategy", "strategy"),
    Column("budget MB", "max_bytes", ".1f", 1e-6),
    Column("for", "solved_for"),
    Column("on", "target"),
    Column("bytes", "bytes", ".0f"),
    Column("cache MB", "cache_bytes", ".1f", 1e-6),
    Column("predicted KL", "predicted_kl", ".3g"),
    Column("KL", "kl_mean", ".4f"),
    Column("KL 99 %", "kl_p99", ".3f"),
    Column("perplexity", "perplexity", ".3f"),
    Column("top-1 %", "top1", ".2f", 100),
    Column("decode t/s", "decode_tokens_per_second", ".1f"),
    Column("prefill t/s", "prefill_tokens_per_second", ".1f"),
    Column("depth", "depth"),
    Column("decode there", "decode_tokens_per_second_there", ".1f"),
)
