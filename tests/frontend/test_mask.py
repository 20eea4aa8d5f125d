"""What a mask means is decided from its numbers, and only where they leave no doubt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.frontend.mask import Form, Mask, classify

Content = Callable[[int, int], np.ndarray]


def spelled(mask: Mask, lowest: float = -np.inf) -> Content:
    """The mask as a graph would compute it, [1, 1, n, n+p]."""

    def content(n: int, p: int) -> np.ndarray:
        seen = mask.matrix(n, p)[None, None]
        if mask.form == "additive":
            return np.where(seen, 0, lowest).astype(np.float32)
        return seen if mask.form == "visible" else ~seen

    return content


def test_matrix_of_a_window_of_two() -> None:
    expected = [
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]  # positions 2 and 3 after two cached ones: each sees itself and the one before
    assert Mask("visible", True, 2).matrix(2, 2).astype(int).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(["visible", "hidden", "additive"]),
    context=st.integers(8, 80),
    share=st.floats(0, 1),
    causal=st.booleans(),
)
def test_what_is_spelled_is_found(form: Form, context: int, share: float, causal: bool) -> None:
    window = 1 + int(share * (context - 2))  # 1 ... context-1: one that hides something
    for mask in (Mask(form, causal), Mask(form, True, window)):
        assert classify(spelled(mask), context, cached=True) == mask


@pytest.mark.parametrize("lowest", [-np.inf, float(np.finfo(np.float32).min), -1e4, -65504.0])
def test_every_way_to_hide(lowest: float) -> None:
    assert classify(spelled(Mask("additive", True), lowest), 32, cached=True) == Mask("additive", True)


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert classify(spelled(Mask("visible", True, 32)), 32, cached=True) == Mask("visible", True)


def test_an_encoder_sees_everything() -> None:
    assert classify(spelled(Mask("additive", False)), 32, cached=False) == Mask("additive", False)


def test_padding_masks_broadcast() -> None:
    assert classify(lambda n, p: np.zeros((1, 1, 1, n + p), np.float32), 32, True) == Mask("additive", False)


@pytest.mark.parametrize(
    "content",
    [
        lambda n, p: (np.arange(p, p + n)[:, None] // 8 == np.arange(n + p)[None] // 8)[None, None],  # chunks of 8
        lambda n, p: -np.abs(np.arange(p, p + n)[:, None] - np.arange(n + p)[None]).astype(np.float32),  # ALiBi
        lambda n, p: np.broadcast_to(np.tril(np.ones((n, n + p), bool)), (2, 3, n, n + p)),  # one per head
        lambda n, p: np.tril(np.ones((n, n + p), bool)),  # forgets the cache: aligned to the first key
    ],
    ids=["chunked", "ALiBi", "per head", "not offset by the cache"],
)
def test_other_masks_are_refused(content: Content) -> None:
    assert classify(content, 32, cached=True) is None
