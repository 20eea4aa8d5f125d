"""A bitwright artifact behind the same calls as `LlamaEngine`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class BitwrightEngine:
    """One artifact in one session.

    Args:
        artifact: folder written by ``bitwright compile``.
        threads: for prompts and for decoding.
        context: positions the cache must hold.
    """

    def __init__(self, artifact: Path, threads: int, context: int) -> None:
        import bitwright

        self._session = bitwright.load(artifact, threads=threads)
        if self._session.context < context:
            raise SystemExit(f"{artifact} holds {self._session.context} positions; these tests need {context}")
        self.vocab = self._session.vocab
        self.weight_bytes = self._session.manifest.files["weights.safetensors"].bytes
        self.cache_bytes_per_token = self._session.manifest.interface.cache_bytes_per_token
        self._version = bitwright.__version__
        self._logits = np.empty(0, np.float32)

    def prefill(self, ids: Sequence[int]) -> None:
        self._logits = self._session.prefill(ids)

    def decode(self, token: int) -> None:
        self._logits = self._session.advance(token).logits

    def reset(self) -> None:
        self._session.reset()

    def last_logits(self) -> NDArray[np.float32]:
        """Logits after the last token, float32 (vocab,)."""
        return self._logits.copy()

    @property
    def description(self) -> dict[str, str]:
        return {
            "name": "bitwright",
            "package": f"bitwright {self._version}",
            "features": "",
            "cache_bytes_per_token": str(self.cache_bytes_per_token),
        }
