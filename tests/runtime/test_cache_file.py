"""Saved caches: what was computed is not computed again, and a file that is not whole or not ours is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.errors import InputError, UsageError
from bitwright.runtime.session import Session, load
from tests.runtime.toy import write

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def saved(session: Session, folder: Path) -> Path:
    session.prefill(IDS)
    session.save_cache(folder / "cache")
    session.reset()
    return folder / "cache"


def test_a_restored_cache_continues_the_text(session: Session, toy: Any, tmp_path: Path) -> None:
    path = saved(session, tmp_path)
    session.prefill([7] * 20)
    session.restore_cache(path)
    assert session.position == len(IDS)
    np.testing.assert_array_equal(session.decode(9), toy.logits([*IDS, 9])[-1])


def test_a_prompt_that_begins_with_it_reuses_it(session: Session, tmp_path: Path) -> None:
    path = saved(session, tmp_path)
    session.restore_cache(path)
    answer = session.generate(ids=[*IDS, 9, 8], max_tokens=1)
    assert answer.stats.reused_tokens == len(IDS)


def test_saving_twice_writes_the_same_bytes_and_nothing_else(session: Session, tmp_path: Path) -> None:
    path = saved(session, tmp_path)
    before = path.read_bytes()
    session.restore_cache(path)
    session.save_cache(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]


def test_a_changed_byte_is_refused_and_the_cache_is_as_before(session: Session, toy: Any, tmp_path: Path) -> None:
    path = saved(session, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    session.prefill([7, 7])
    with pytest.raises(InputError, match="the saved cache is damaged"):
        session.restore_cache(path)
    assert session.position == 2
    np.testing.assert_array_equal(session.decode(9), toy.logits([7, 7, 9])[-1])


def test_a_cut_file_is_refused(session: Session, tmp_path: Path) -> None:
    path = saved(session, tmp_path)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(InputError):
        session.restore_cache(path)


def test_the_cache_of_another_artifact_is_refused(session: Session, toy: Any, executable: Any, tmp_path: Path) -> None:
    path = saved(session, tmp_path)
    other = type(toy).make(toy.vocab, seed=1)
    write(tmp_path / "other", other, executable)
    with pytest.raises(InputError, match="not saved by this artifact"):
        load(tmp_path / "other", threads=1).restore_cache(path)


def test_a_place_that_cannot_be_written_is_an_error(session: Session, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the cache cannot be written"):
        session.save_cache(tmp_path / "no" / "cache")
