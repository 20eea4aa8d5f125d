"""Sizes: decimal and binary units, exact."""

from __future__ import annotations

import pytest

from bitwright.errors import UsageError
from bitwright.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("54000000", 54_000_000),
        ("54MB", 54_000_000),
        ("54 MiB", 54 << 20),
        ("1.5kB", 1500),
        ("0.1MB", 100_000),
        ("2.0000001GB", 2_000_000_100),
        ("3GiB", 3 << 30),
    ],
)
def test_units(text: str, count: int) -> None:
    assert parse_size(text, "--max-bytes") == count


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e6", "60mb", "60 M B", "1,5MB", "٣MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_size(text, "--max-bytes")
    assert "--max-bytes 60MB" in str(caught.value)
