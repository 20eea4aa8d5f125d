"""Latency tables as files: JSON with a digest of its content, which plans name that were computed from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bitwright.autotune.anchor import Anchor
from bitwright.autotune.latency import Entry, LatencyTable
from bitwright.autotune.store import user_folder
from bitwright.autotune.workload import Workload
from bitwright.errors import InputError

TABLE_VERSION = 3


def default_file(fingerprint: str) -> Path:
    """Where a target's table is kept: beside its tuning records."""
    return user_folder().parent / "latencies" / f"{fingerprint}.json"


def to_json(table: LatencyTable) -> str:
    content = {
        "table_version": TABLE_VERSION,
        "fingerprint": table.fingerprint,
        "isa": table.isa,
        "threads": table.threads,
        "entries": [
            {"workload": work.to_json(), "working_set": size, "seconds": timing.seconds, "spread": timing.spread}
            for (work, size), timing in sorted(table.entries.items(), key=lambda item: item[0])
        ],
        "anchors": [anchor.to_json() for anchor in sorted(table.anchors)],
    }
    return json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n"


def digest(table: LatencyTable) -> str:
    """sha256 of the content."""
    found: str = json.loads(to_json(table))["digest"]
    return found


def _digest(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_table(table: LatencyTable, path: Path) -> None:
    """Replace the file; a failure leaves the old one.

    Raises:
        InputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(to_json(table), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            "the latency table cannot be written", where=str(path), limit=error.strerror, remedy="choose another path"
        ) from error


def read_table(path: Path) -> LatencyTable:
    """Raises InputError: the file cannot be read, was changed, or is no latency table."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("the latency table cannot be read", where=str(path), limit=str(error)) from error
    if not isinstance(document, dict) or document.get("table_version") != TABLE_VERSION:
        raise InputError(
            "the latency table has an unknown version",
            where=str(path),
            limit=f"table_version {TABLE_VERSION}",
            remedy="measure it again with this version of bitwright",
        )
    content = {name: value for name, value in document.items() if name != "digest"}
    if document.get("digest") != _digest(content):
        raise InputError(
            "the latency table was changed", where=str(path), limit="its digest", remedy="measure it again"
        )
    table = LatencyTable(document["fingerprint"], document["isa"], document["threads"])
    for entry in document["entries"]:
        workload = Workload.from_json(entry["workload"], str(path))
        table.add(Entry(workload, int(entry["working_set"]), float(entry["seconds"]), float(entry["spread"])))
    table.anchors.update(Anchor.from_json(anchor, str(path)) for anchor in document["anchors"])
    return table


def open_table(path: Path, fingerprint: str, isa: str, threads: int) -> LatencyTable:
    """The table in a file, to be continued, or a new one.

    Raises:
        InputError: the file holds another target's.
    """
    if not path.exists():
        return LatencyTable(fingerprint, isa, threads)
    table = read_table(path)
    if table.fingerprint != fingerprint:
        raise InputError(
            "the latency table was measured on another target",
            where=f"{path}: fingerprint {table.fingerprint}",
            limit=f"this target is {fingerprint}",
            remedy="use another file",
        )
    return table
