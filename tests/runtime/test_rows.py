"""Rows read in pieces, and a session's rows against its logits and the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import InternalError, UsageError
from bitwright.runtime.rows import RowReader


@given(st.lists(st.integers(0, 5), max_size=6), st.lists(st.integers(1, 7), max_size=8), st.integers(0, 4))
def test_pieces_read_as_one_array(sizes: list[int], takes: list[int], skipped: int) -> None:
    rows = np.arange(2 * sum(sizes)).reshape(-1, 2)
    pieces = np.split(rows, np.cumsum(sizes)[:-1]) if sizes else []
    if skipped + sum(takes) > len(rows):
        takes, skipped = [len(rows)] if len(rows) else [], 0
    for reader in (RowReader(rows, len(rows), "model", ""), RowReader(iter(pieces), len(rows), "model", "")):
        reader.skip(skipped)
        found = [reader.take(count) for count in takes]
        assert [len(piece) for piece in found] == takes
        np.testing.assert_array_equal(np.concatenate([rows[:skipped], *found]), rows[: skipped + sum(takes)])


def test_too_few_rows_say_how_many_there_were() -> None:
    reader = RowReader([np.zeros((3, 2))], 5, "reference", "window 2")
    with pytest.raises(InternalError, match="the reference gave 3 rows of logits") as error:
        reader.take(5)
    assert (error.value.where, error.value.limit) == ("window 2", "5 rows of one vocabulary")
    with pytest.raises(InternalError, match=r"the reference gave logits of shape \(3,\)"):
        RowReader([np.zeros(3)], 3, "reference", "").take(1)


@pytest.mark.parametrize("first", [0, 1, 15, 16, 20, 39])
def test_a_session_gives_rows_from_any_token_on(session: Any, toy: Any, first: int) -> None:
    ids = np.random.default_rng(0).integers(0, toy.vocab, 40)
    pieces = list(session.rows(ids, first))
    assert max(len(piece) for piece in pieces) <= 16  # the toy's prefill chunk
    np.testing.assert_array_equal(np.concatenate(pieces), toy.logits(ids)[first:])
    assert session.position == 40


def test_what_the_cache_holds_is_not_computed_again(session: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    step = session.module.step

    def counting(name: str, part: Any, position: int) -> Any:
        fed.append(len(part))
        return step(name, part, position)

    monkeypatch.setattr(session.module, "step", counting)
    document = list(range(30))
    for ending in ([40, 41], [42, 43, 44], [40]):
        rows = np.concatenate(list(session.rows([*document, *ending], 29)))
        np.testing.assert_array_equal(rows, toy.logits([*document, *ending])[29:])
    assert sum(fed) == 29 + (1 + 2) + (1 + 3) + (1 + 1)
    fed.clear()
    list(session.rows([*document, 40]))
    assert sum(fed) == 31  # rows from the first on start an empty cache


@pytest.mark.parametrize("first", [-1, 3])
def test_rows_from_outside_are_refused(session: Any, first: int) -> None:
    with pytest.raises(UsageError, match=f"rows from {first} on"):
        next(iter(session.rows([1, 2, 3], first)))
    with pytest.raises(UsageError, match="the text has 49 tokens"):
        next(iter(session.rows([1] * 49)))
