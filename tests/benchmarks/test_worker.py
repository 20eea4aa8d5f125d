"""Worker processes on a real artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bitwright_engine import BitwrightEngine
from benchmarks.paired import Contestant, Worker
from benchmarks.worker import Row


@pytest.fixture(autouse=True)
def repository_as_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers are started as modules of benchmarks/, which is not installed.
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def test_a_worker_measures_an_artifact(artifact_path: Path) -> None:
    with Worker(Contestant("ours", "bitwright", artifact_path), threads=1, context=48) as worker:
        assert worker.description["name"] == "bitwright"
        assert worker.description["weight_bytes"] == (artifact_path / "weights.safetensors").stat().st_size
        for row in (Row("pp", 20), Row("tg", 4, depth=16)):
            assert worker.tokens_per_second(row) > 0


def test_a_context_beyond_the_artifact_is_refused(artifact_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds 48 positions; these tests need 512"):
        BitwrightEngine(artifact_path, threads=1, context=512)


def test_a_worker_that_dies_says_who_it_was(tmp_path: Path) -> None:
    dying = Worker(Contestant("ours", "bitwright", tmp_path / "absent"), threads=1, context=48)
    with pytest.raises(SystemExit, match=r"ours \(1 threads\) ended with 1; see above"):
        dying.__enter__()
