"""Weights are copied into huge pages where the machine has them and room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitwright.runtime.memory import available_bytes, has_huge_pages, should_copy
from bitwright.runtime.session import Session, load


@pytest.mark.parametrize(
    ("text", "expected"),
    [("always [madvise] never\n", True), ("[always] madvise never\n", True), ("always madvise [never]\n", False)],
)
def test_the_kernel_says_whether_there_are_huge_pages(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "enabled").write_text(text)
    assert has_huge_pages(tmp_path / "enabled") is expected
    assert has_huge_pages(tmp_path / "missing") is False


def test_available_memory_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:   64 kB\n")
    assert available_bytes(tmp_path / "meminfo") == 64 * 1024
    assert available_bytes(tmp_path / "missing") == 0


def test_a_copy_takes_at_most_half_of_what_is_available() -> None:
    assert should_copy(50, huge=True, available=100) and not should_copy(51, huge=True, available=100)
    assert not should_copy(1, huge=False, available=100)


def test_copied_and_mapped_weights_give_the_same_logits(session: Session) -> None:
    folder = session.artifact.folder
    rows = [load(folder, copy_weights=copy).logits([1, 2, 3]) for copy in (False, True)]
    np.testing.assert_array_equal(*rows)
