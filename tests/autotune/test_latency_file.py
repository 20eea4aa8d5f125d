"""Latency tables are stored, continued and refused; the rest of a step is linear in depth and tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitwright.autotune.anchor import Anchor, Anchors
from bitwright.autotune.latency import Entry
from bitwright.autotune.latency_file import digest, open_table, read_table, write_table
from bitwright.errors import InputError, UnsupportedError
from tests.autotune.latency_tables import SETS, anchor, linear, table


def test_tables_are_stored_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    made = table()
    made.add_anchors([anchor(), anchor(64)])
    write_table(made, path)
    again = open_table(path, "here", "avx2", 2)
    assert again == made and digest(again) == digest(made)
    again.add(Entry(linear((64, 64)), SETS[0], 1e-6))
    assert digest(again) != digest(made)
    assert open_table(tmp_path / "new.json", "here", "avx2", 2).entries == {}
    with pytest.raises(InputError, match="another target"):
        open_table(path, "elsewhere", "avx2", 2)


def test_anchors_of_a_model_replace_older_ones() -> None:
    made = table()
    made.add_anchors([anchor(), anchor(64), anchor(threads=1)])
    made.add_anchors([anchor(scheme="u8g32a8")])
    assert {(a.scheme, a.threads) for a in made.anchors} == {("u8g32a8", 2), ("u4g32a8", 1)}
    with pytest.raises(UnsupportedError, match="nothing about the whole"):
        made.anchors_of("cd" * 32)


@pytest.mark.parametrize("seconds", [0.0, -1e-6, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="not positive"):
        Entry(linear((64, 64)), SETS[0], seconds)


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_table(table(), path)
    document = json.loads(path.read_text())
    document["entries"][0]["seconds"] *= 2
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="was changed"):
        read_table(path)
    path.write_text(json.dumps({**document, "table_version": 9}))
    with pytest.raises(InputError, match="unknown version"):
        read_table(path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(path)
    with pytest.raises(InputError, match="cannot be written"):
        write_table(table(), tmp_path / "absent" / "t.json")


@pytest.mark.parametrize("change", [{"tokens": "1"}, {"extra": 1}, {"linear": 0.0}, {"model": "short"}])
def test_a_malformed_anchor_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="anchor"):
        Anchor.from_json({**anchor().to_json(), **change}, "t.json")


def test_the_rest_is_linear_in_depth_and_tokens() -> None:
    found = Anchors(tuple(anchor(m, d) for m, d in ((1, 0), (1, 100), (1, 300), (64, 0), (256, 0), (256, 1000))))
    assert found.rest(1, 200) == pytest.approx(1e-4 + 2e-4)
    assert found.rest(1, 600) == pytest.approx(1e-4 + 6e-4)
    assert found.rest(256, 500) == pytest.approx(256e-4 + 5e-4)
    assert found.rest(128, 500) == pytest.approx(128e-4 + 2.5e-4)
    assert found.rest(512, 0) == pytest.approx(512e-4)
    with pytest.raises(UnsupportedError, match="not measured with 7 tokens"):
        Anchors((anchor(),)).rest(7, 0)
