"""The paired benchmark's report: its document, and its tables for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal
from benchmarks.paired import ratios, rows


def report(journal: Journal, ours: Sequence[str], load: tuple[float, float, float]) -> dict[str, Any]:
    """Everything but the samples.

    Args:
        ours: labels of bitwright's artifacts.
        load: average load of the machine before the benchmark.
    """
    peers = [label for label in journal.contestants if label not in ours and not label.startswith("bitwright ")]
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": load},
        "rows": rows(journal.figures),
        "ratios": [{"ours": mine, **row} for mine in ours for row in ratios(journal.figures, mine, peers)],
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def print_tables(document: dict[str, Any], journal: Journal) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if os.isatty(1) else 120)
    table = Table("contestant", "MB", "test", "depth", "threads", "tokens/s", "min", "max", "rounds", title="speed")
    order = {label: number for number, label in enumerate(journal.contestants)}
    key = lambda row: (row["test"], row["depth"], row["threads"], order[row["contestant"]])  # noqa: E731
    for row in sorted(document["rows"], key=key):
        speed, size = row["tokens_per_second"], journal.contestants[row["contestant"]]["weight_bytes"] / 1e6
        table.add_row(
            row["contestant"], f"{size:.1f}", row["test"], str(row["depth"]), str(row["threads"]),
            *(f"{speed[name]:.1f}" for name in ("median", "min", "max")), str(row["rounds"]),
        )  # fmt: skip
    console.print(table)
    for test, depth, threads in sorted({(row["test"], row["depth"], row["threads"]) for row in document["ratios"]}):
        here = [
            row for row in document["ratios"] if (row["test"], row["depth"], row["threads"]) == (test, depth, threads)
        ]
        ours = list(dict.fromkeys(row["ours"] for row in here))
        console.print(f"\nbitwright over its peers: {test} at depth {depth}, threads {threads}")
        table = Table("peer", *(label.removeprefix("bitwright ") for label in ours))
        for peer in dict.fromkeys(row["peer"] for row in here):
            ratio = {row["ours"]: row["ratio"] for row in here if row["peer"] == peer}
            table.add_row(peer, *(_ratio_cell(ratio.get(label)) for label in ours))
        console.print(table)


def _ratio_cell(ratio: dict[str, float] | None) -> str:
    return "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"
