"""What tests of compilations calibrate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,536 words that ``word_tokenizer`` knows."""
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(" ".join(f"w{i}" for i in np.random.default_rng(0).integers(0, 101, 96 * 16)))
    return path
