"""The benchmark of cache maps times what a layer computes, and says what it reads."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import head_maps


def test_rows_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_maps, "RING_BYTES", 2**16)
    options = ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--tokens", "1,3", "--seconds", "0.01", "--json"]
    before = dict(os.environ)
    assert head_maps.main(options) == 0
    assert dict(os.environ) == before
    rows = json.loads(capsys.readouterr().out)["rows"]
    matrices = 2 * 2 * 16 * 16
    assert [(row["maps"], row["tokens"], row["bytes"]) for row in rows] == [
        (maps, tokens, size)
        for maps, size in (("queries", matrices), ("keys", matrices + 4 * 2 * 16), ("values", matrices))
        for tokens in (1, 3)
    ]
    for row in rows:
        assert row["seconds"] > 0
        assert (row["cold_seconds"] is None) == (row["tokens"] > 1)


def test_heads_that_are_no_multiple_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert head_maps.main(["--heads", "5", "--kv-heads", "2"]) == 5
    assert "5 heads in 2 groups" in capsys.readouterr().err
