"""Turns, statistics and ratios of the paired benchmark, on contestants whose speed is known."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from benchmarks.paired import measure, ratios, rows
from benchmarks.worker import WARM_TOKENS, Row, run_test, serve

WARM = [("reset", 0), ("prefill", WARM_TOKENS), *[("decode", 1)] * WARM_TOKENS]
PP, TG = Row("pp", 4), Row("tg", 3, depth=5)


class RecordingEngine:
    vocab, weight_bytes = 11, 1234
    description = {"name": "recording", "package": "none", "features": ""}  # noqa: RUF012  # never changed

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def prefill(self, ids: list[int]) -> None:
        assert all(0 <= token < self.vocab for token in ids)
        self.calls.append(("prefill", len(ids)))

    def decode(self, token: int) -> None:
        assert 0 <= token < self.vocab
        self.calls.append(("decode", 1))

    def reset(self) -> None:
        self.calls.append(("reset", 0))

    def last_logits(self) -> np.ndarray:
        return np.array([0.5, len(self.calls)], np.float32)


class FixedWorker:
    """Stands in for a worker process: its speed in round r is ``speeds[r]``, whatever the test."""

    def __init__(self, label: str, speeds: list[float], log: list[str]) -> None:
        self.contestant = type("C", (), {"label": label})()
        self.threads = 1
        self._speeds, self._log = {test: iter(speeds) for test in (PP, TG)}, log

    def tokens_per_second(self, test: Row) -> float:
        self._log.append(self.contestant.label)
        return next(self._speeds[test])


def test_a_prompt_is_one_call_after_a_reset() -> None:
    engine = RecordingEngine()
    assert run_test(engine, PP, np.random.default_rng(0)) > 0
    assert engine.calls == [*WARM, ("reset", 0), ("prefill", 4)]


def test_depth_is_filled_before_tokens_are_decoded_one_by_one() -> None:
    engine = RecordingEngine()
    run_test(engine, TG, np.random.default_rng(0))
    assert engine.calls == [*WARM, ("reset", 0), ("prefill", 5), *[("decode", 1)] * 3]


def test_a_worker_describes_itself_then_answers_each_request() -> None:
    answers: list[dict[str, object]] = []
    requests = io.StringIO('{"test": "pp4", "depth": 0}\n{"test": "tg3", "depth": 5}\n')
    serve(RecordingEngine(), requests, answers.append)
    assert answers[0]["weight_bytes"] == 1234
    assert [answer["tokens"] for answer in answers[1:]] == [4, 3]


def test_logits_are_those_of_a_prompt_and_a_decoded_token() -> None:
    answers: list[dict[str, object]] = []
    engine = RecordingEngine()
    serve(engine, io.StringIO('{"logits": [3, 1, 2]}\n'), answers.append)
    assert engine.calls == [("reset", 0), ("prefill", 2), ("decode", 1)]
    assert answers[1] == {"logits": [0.5, 3.0]}


@pytest.mark.parametrize("name", ["pp", "tg0", "pp-1", "xx5", "pp512 "])
def test_a_row_must_be_named_as_llama_bench_names_it(name: str) -> None:
    with pytest.raises(SystemExit, match="use pp<tokens> or tg<tokens>"):
        Row.parse(name)


def test_the_first_round_is_not_counted_and_turns_alternate() -> None:
    order: list[str] = []
    workers = [FixedWorker("a", [1, 30, 10, 20], order), FixedWorker("b", [1, 10, 10, 10], order)]
    rounds: list[Any] = []
    measure(workers, [PP], range(1, 4), lambda text: None, lambda *told: rounds.append(told))  # type: ignore[arg-type]
    a, b = ("a", 1, PP), ("b", 1, PP)
    assert rounds == [(1, {a: 30, b: 10}), (2, {a: 10, b: 10}), (3, {a: 20, b: 10})]
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_ratios_are_taken_within_a_round() -> None:
    # Round by round we are 2, 4 and 1 times as fast: median 2. The ratio of the two medians would be 15 / 10.
    # Round 9 was ours alone.
    figures = {("ours", 2, TG): {1: 10.0, 2: 40.0, 4: 15.0, 9: 1.0}, ("peer", 2, TG): {1: 5.0, 2: 10.0, 4: 15.0}}
    (found,) = ratios(figures, "ours", ["peer"])
    assert found["peer"] == "peer" and found["test"] == "tg3" and found["depth"] == 5 and found["threads"] == 2
    assert found["ratio"]["median"] == 2.0 and found["ratio"]["min"] == 1.0 and found["ratio"]["max"] == 4.0


def test_rows_carry_median_extremes_and_deviation() -> None:
    (row,) = rows({("ours", 1, PP): {1: 1.0, 2: 2.0, 3: 9.0}})
    assert row["contestant"] == "ours" and row["test"] == "pp4"
    # Mean 4; squared deviations 9 + 4 + 25 over n - 1 = 2.
    assert row["tokens_per_second"] == {
        "median": 2.0,
        "min": 1.0,
        "max": 9.0,
        "mean": 4.0,
        "sd": pytest.approx(19**0.5),
    }
    json.dumps(row)
