"""Rotations are orthonormal, spread evenly what they mix, and are applied as their matrices multiply."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import InternalError
from bitwright.hadamard import LARGEST_ORDER, Rotation, signs

WIDTHS = {
    576: Rotation(1, 36, 16),
    1536: Rotation(1, 12, 128),
    768: Rotation(1, 12, 64),
    896: Rotation(1, 28, 32),
    960: Rotation(1, 60, 16),
    5632: Rotation(1, 44, 128),
    80: Rotation(1, 20, 4),
    64: Rotation(1, 1, 64),
    11008: Rotation(43, 1, 256),
    7: Rotation(7, 1, 1),
}


def test_hadamard_matrices_of_many_orders() -> None:
    found = [order for order in range(1, LARGEST_ORDER + 1) if signs(order)]
    assert found == [1, 4, 12, 20, 28, 36, 44, 60]
    for order in found:
        h = np.array(signs(order))
        assert set(np.abs(h).reshape(-1)) == {1}
        np.testing.assert_array_equal(h @ h.T, order * np.eye(order))


@pytest.mark.parametrize("width", WIDTHS)
def test_as_many_elements_as_possible_are_mixed_evenly(width: int) -> None:
    rotation = Rotation.of(width)
    assert rotation == WIDTHS[width] and rotation.width == width
    if width < 2000:
        sizes = np.abs(rotation.matrix())
        assert set(np.unique(np.round(sizes * rotation.mixed**0.5, 9))) <= {0.0, 1.0}
        assert (np.count_nonzero(sizes, axis=0) == rotation.mixed).all()


@given(width=st.integers(1, 400), rows=st.integers(0, 3), seed=st.integers(0, 100))
def test_what_is_rotated_and_rotated_back_is_as_it_was(width: int, rows: int, seed: int) -> None:
    rotation, x = Rotation.of(width), np.random.default_rng(seed).standard_normal((rows, 2, width))
    turned = rotation.apply(x)
    np.testing.assert_allclose(rotation.apply(turned, transposed=True), x, atol=1e-12)
    np.testing.assert_allclose(np.square(turned).sum(-1), np.square(x).sum(-1))
    np.testing.assert_allclose(turned, x @ rotation.matrix(), atol=1e-12)


@pytest.mark.parametrize("wrong", [(0, 1, 8), (1, 3, 8), (1, 1, 6), (1, 52, 4)])
def test_orders_that_there_are_no_matrices_of_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(InternalError, match="a rotation of"):
        Rotation(*wrong)
