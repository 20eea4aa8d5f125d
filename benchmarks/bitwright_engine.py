"""A bitwright artifact behind the same calls as `LlamaEngine`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


class BitwrightEngine:
    """One artifact in one session.

    Args:
        artifact: folder written by ``bitwright compile``.
        threads: for prompts and for decoding. TVM fixes the size of its pool when the library starts, so this must be
            the process's first use of it.
        context: positions the cache must hold.
    """

    def __init__(self, artifact: Path, threads: int, context: int) -> None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
        import bitwright

        manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
        capacity = manifest["interface"]["context"]
        if capacity < context:
            raise SystemExit(f"{artifact} was compiled for {capacity} positions; these tests need {context}")
        self._session = bitwright.load(artifact)
        self.vocab = int(manifest["interface"]["vocab"])
        self.weight_bytes = next(
            int(entry["bytes"]) for name, entry in manifest["files"].items() if name.startswith("weights.")
        )
        self._version = bitwright.__version__

    def prefill(self, ids: Sequence[int]) -> None:
        self._session.prefill(ids)

    def decode(self, token: int) -> None:
        self._session.decode(token)

    def reset(self) -> None:
        self._session.reset()

    @property
    def description(self) -> dict[str, str]:
        return {"name": "bitwright", "package": f"bitwright {self._version}", "features": ""}
