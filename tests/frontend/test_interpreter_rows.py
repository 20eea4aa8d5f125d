"""Rows through the interpreter's cache equal those of one pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.interpreter.rows import CachedRows
from bitwright.frontend.model import ImportedModel

NEAR = {"rtol": 1e-4, "atol": 1e-5}
IDS = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3, 2, 38, 4]


@pytest.fixture(params=["llama_tied", "gemma3"])
def interpreter(request: pytest.FixtureRequest, imported: Callable[..., ImportedModel]) -> Interpreter:
    return Interpreter(imported(request.param).graph)


@pytest.mark.parametrize("piece", [1, 4, 100])
@pytest.mark.parametrize("first", [0, 6, 14])
def test_pieces_equal_one_pass(interpreter: Interpreter, piece: int, first: int) -> None:
    found = list(CachedRows(interpreter, piece)(IDS, first))
    assert max(len(rows) for rows in found) <= piece
    np.testing.assert_allclose(np.concatenate(found), interpreter.logits(IDS)[first:], **NEAR)


def test_what_is_shared_with_the_last_sequence_is_not_computed_again(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, fed = CachedRows(interpreter, 100), []
    step = interpreter.step
    monkeypatch.setattr(interpreter, "step", lambda ids, *rest, **kw: fed.append(len(ids)) or step(ids, *rest, **kw))
    for ending in ([1, 2], [3, 4, 5], [1]):
        found = np.concatenate(list(rows([*IDS, *ending], len(IDS))))
        np.testing.assert_allclose(found, interpreter.logits([*IDS, *ending])[len(IDS) :], **NEAR)
    assert fed == [len(IDS), 2, 3, 1]
