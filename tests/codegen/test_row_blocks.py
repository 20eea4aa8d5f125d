"""Which rows a register block of a prefill kernel computes at a time."""

from __future__ import annotations

import pytest

from bitwright.codegen.linear.row_blocks import block_sizes


@pytest.mark.parametrize(("largest", "sizes"), [(1, (1,)), (3, (3, 2, 1)), (4, (4, 3, 2, 1)), (10, (10, 5, 2, 1))])
def test_sizes(largest: int, sizes: tuple[int, ...]) -> None:
    assert block_sizes(largest) == sizes


@pytest.mark.parametrize("largest", [1, 2, 3, 5, 6, 8, 10, 12])
def test_every_number_of_rows_is_reached(largest: int) -> None:
    for rows in range(40):
        left = rows
        for size in block_sizes(largest):
            left %= size
        assert left == 0
