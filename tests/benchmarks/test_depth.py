"""The depth benchmark's command line, its tables, and the sweep through depths."""

from __future__ import annotations

import io

import numpy as np
import pytest

from benchmarks.depth import markdown, parse_arguments
from benchmarks.journal import Journal
from benchmarks.worker import Row, run_sweep, serve

from .test_paired import WARM, RecordingEngine


def test_defaults_are_the_depths_and_caches_of_the_table() -> None:
    found = parse_arguments(["folder", "--artifact", "a/x"])
    assert found.depths == [0, 2048, 4096, 8128] and found.caches == ["f16", "q8_0", "q4_0"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--caches", "q9"], "not known: q9; known are f16, q8_0, q4_0"),
        (["--rounds", "0"], "at least one round"),
        (["-d", "0,8", "--tokens", "8"], "depths must differ by more than --tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["folder", *arguments])
    assert text in capsys.readouterr().err


def test_prompts_fill_the_context_up_to_each_depth() -> None:
    engine = RecordingEngine()
    seconds = run_sweep(engine, [0, 6, 9], 2, np.random.default_rng(0))
    assert len(seconds) == 3 and min(seconds) >= 0
    filled = [("decode", 1)] * 2, [("prefill", 4), *[("decode", 1)] * 2], [("prefill", 1), *[("decode", 1)] * 2]
    assert engine.calls == [*WARM, ("reset", 0), *filled[0], *filled[1], *filled[2]]


def test_a_worker_answers_a_sweep() -> None:
    answers: list[dict[str, object]] = []
    serve(RecordingEngine(), io.StringIO('{"sweep": [0, 5], "tokens": 2}\n'), answers.append)
    seconds = answers[1]["seconds"]
    assert isinstance(seconds, list) and len(seconds) == 2


def test_tables_show_medians_and_ratios_within_rounds() -> None:
    tests = [Row("tg", 2, 0), Row("tg", 2, 64)]
    ours, peer = "bitwright a", "llama.cpp q4_0, f16 cache"
    journal = Journal("digest", {label: {"cache_bytes_per_token": "1234"} for label in (ours, peer)})
    # Round by round we are 2 and 4 times as fast at depth 0; nobody has been to 64 but we.
    journal.figures = {
        (ours, 2, tests[0]): {1: 10.0, 2: 40.0},
        (peer, 2, tests[0]): {1: 5.0, 2: 10.0},
        (ours, 2, tests[1]): {1: 7.0},
    }
    lines = markdown(journal, [ours], 2, tests).splitlines()
    assert lines[0] == "| contestant | cache bytes per token | 0 | 64 |"
    assert f"| {ours} | 1,234 | 25 | 7 |" in lines and f"| {peer} | 1,234 | 8 | - |" in lines
    assert lines[-1] == f"| {ours} | {peer} | 3.00 [2.00-4.00] | - |"
