"""Whether a contestant computes what the reference computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference import Reference, home_of

LOGITS = np.array([-2.0, 0.0, 2.0, 0.0], np.float32)
REFERENCE = Reference((1, 2), LOGITS, "float32")


def test_errors_are_relative_to_the_spread() -> None:
    # Spread sqrt(8 / 4); every logit off by 0.1.
    assert REFERENCE.error(LOGITS + np.float32(0.1)) == pytest.approx(0.1 / np.sqrt(2), rel=1e-5)


def test_an_unquantized_copy_must_be_equal() -> None:
    REFERENCE.require_equal(LOGITS * np.float32(1.0005), "copy")
    for wrong in (LOGITS * np.float32(1.01), LOGITS * np.float32("nan")):
        with pytest.raises(SystemExit, match=r"copy does not compute what the reference does: the limit is 0\.001"):
            REFERENCE.require_equal(wrong, "copy")


def test_a_quantized_copy_must_be_similar() -> None:
    assert REFERENCE.require_similar([-1.9, 0.1, 2.2, 0.0], "copy") > 0.99
    for wrong in ([2.0, 0.0, -2.0, 0.0], [0.0, 1.0, 0.0, -1.0], [float("nan")] * 4):
        with pytest.raises(SystemExit, match="copy: its logits correlate"):
            REFERENCE.require_similar(wrong, "copy")


def test_files_are_kept_by_the_digest_of_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(SystemExit, match="holds no"):
        home_of(folder, tmp_path)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    first = home_of(folder, tmp_path)
    (folder / "model.safetensors").write_bytes(b"2")
    assert first.is_dir() and home_of(folder, tmp_path) != first
