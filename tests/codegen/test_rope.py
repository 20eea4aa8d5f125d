"""Rotary kernel: both pairings, partial rotation, arbitrary positions."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.codegen.columns import Columns
from bitwright.codegen.reference.rope import rope
from bitwright.codegen.rope import RopeSpec, build_rope
from bitwright.errors import InternalError, UnsupportedError

from .harness import assert_close, call, empty
from .tolerances import EXACT, ROPE

RNG = np.random.default_rng(2)
POSITIONS = 50


def tables(half: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.outer(np.arange(POSITIONS), 10000.0 ** (-np.arange(half) / max(half, 1)))
    return np.cos(angles).astype("float32"), np.sin(angles).astype("float32")


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "head_dim", "rotary"), [(3, 64, 64), (2, 20, 20), (2, 80, 32), (1, 7, 6), (9, 2, 2)])
def test_matches_oracle(heads: int, head_dim: int, rotary: int, interleaved: bool, lanes: int) -> None:
    spec = RopeSpec(heads, head_dim, rotary, POSITIONS, interleaved=interleaved, lanes=lanes)
    cos, sin = tables(rotary // 2)
    for n in (1, 5):
        x = RNG.standard_normal((n, heads * head_dim)).astype("float32")
        positions = RNG.integers(0, POSITIONS, n)
        (y,) = call(build_rope, spec, x, cos, sin, positions, empty(*x.shape), outputs=(4,))
        assert_close(y, rope(x, cos, sin, positions, heads, interleaved=interleaved), ROPE)
        untouched = x.reshape(n, heads, -1)[..., rotary:]
        assert_close(y.reshape(n, heads, -1)[..., rotary:], untouched, EXACT)


@pytest.mark.parametrize("interleaved", [False, True])
def test_heads_may_be_columns_of_a_wider_matrix(interleaved: bool) -> None:
    spec = RopeSpec(3, 20, 12, POSITIONS, interleaved=interleaved, source=Columns(60, 100, 30))
    cos, sin = tables(6)
    x, positions = RNG.standard_normal((5, 100)).astype("float32"), RNG.integers(0, POSITIONS, 5)
    (y,) = call(build_rope, spec, x, cos, sin, positions, empty(5, 60), outputs=(4,))
    assert_close(y, rope(x[:, 30:90], cos, sin, positions, 3, interleaved=interleaved), ROPE)
    with pytest.raises(InternalError, match="columns 41 to 101 of 100"):
        Columns(60, 100, 41)


def test_scores_depend_on_the_distance_alone() -> None:
    """The reason for rotary embedding: q at p and k at p - 3 have the same product wherever p is."""
    spec = RopeSpec(1, 16, 16, POSITIONS)
    cos, sin = tables(8)
    q, k = RNG.standard_normal((2, 1, 16)).astype("float32")
    products = []
    for p in (3, 20, 40):
        rotated = [
            call(build_rope, spec, x, cos, sin, np.array([at]), empty(1, 16), outputs=(4,))[0]
            for x, at in ((q, p), (k, p - 3))
        ]
        products.append(float((rotated[0] * rotated[1]).sum()))
    np.testing.assert_allclose(products, products[0], rtol=1e-5)


def test_odd_rotary_dimension_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="rotary dimension 5 of heads of 8"):
        RopeSpec(1, 8, 5, 10)
