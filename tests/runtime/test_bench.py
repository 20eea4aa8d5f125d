"""The bench: rows that were asked for, bytes derived by hand, figures that fit together."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from bitwright.errors import UnsupportedError, UsageError
from bitwright.runtime.artifact import Interface
from bitwright.runtime.bench import BenchRow, BenchTest, plan_tests, run_tests
from bitwright.runtime.session import Session
from tests.runtime.toy import CHUNK, CONTEXT
from tests.runtime.toy_fixtures import THREADS

INTERFACE = Interface(
    context=10_000,
    prefill_chunk=128,
    vocab=10,
    functions=("prefill", "decode", "score"),
    weight_bytes_per_token=1_000_000,
    cache_bytes_per_token=100,
    macs_per_token=1000,
    macs_per_chunk=300,
)


def test_decoding_reads_the_weights_and_the_cache_up_to_each_token() -> None:
    by_hand = statistics.fmean(1_000_000 + 100 * (4096 + step + 1) for step in range(64))
    assert BenchTest("tg", 64, 4096, 1).bytes_per_token(INTERFACE) == int(by_hand)


def test_a_prompt_reads_the_weights_once_per_chunk_and_the_cache_behind_each() -> None:
    chunks = [(128, 138), (128, 266), (44, 310)]  # 300 tokens at depth 10: tokens, cache behind them
    by_hand = sum(1_000_000 + 100 * end for _, end in chunks) // 300
    assert BenchTest("pp", 300, 10, 1).bytes_per_token(INTERFACE) == by_hand


def test_only_the_last_token_of_a_chunk_is_multiplied_by_everything() -> None:
    # Three chunks of 128, 128 and 44 tokens.
    assert BenchTest("pp", 300, 10, 1).macs_per_token(INTERFACE) == 1000 + 3 * 300 // 300
    assert BenchTest("tg", 64, 10, 1).macs_per_token(INTERFACE) == 1300


def test_rows_are_all_combinations_without_zeros() -> None:
    names = [(t.name, t.depth, t.threads) for t in plan_tests([8, 0], [4], [0, 16], [1, 2], 48)]
    assert names == [(name, depth, threads) for threads in (1, 2) for depth in (0, 16) for name in ("pp8", "tg4")]


def test_a_row_longer_than_the_context_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        plan_tests([8], [4], [0, 45], [1], 48)
    assert caught.value.what == "pp8 at depth 45 needs 53 tokens of context"
    assert caught.value.limit == "the context of this artifact is 48 tokens"


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(UsageError, match="there is nothing to measure"):
        plan_tests([0], [], [0], [1], 48)


def test_measured_rows(session: Session) -> None:
    seen: list[tuple[int, int]] = []
    tests = plan_tests([CHUNK + 3], [5], [0, CONTEXT - CHUNK - 3], [1, THREADS], CONTEXT)
    rows = list(run_tests(session, tests, repetitions=3, progress=lambda *state: seen.append(state)))
    assert [row.test for row in rows] == tests
    assert seen == [(number, 32) for number in range(1, 33)]
    for row in rows:
        assert len(row.samples) == 3
        assert all(sample > 0 for sample in row.samples)
        # A read loop on one machine: between 1 MB/s and 1 TB/s.
        assert 1e6 < row.bandwidth < 1e12
        assert row.roofline_fraction == pytest.approx(row.median * row.bytes_per_token / row.bandwidth)
    assert session.position == tests[-1].depth


def test_the_documented_keys() -> None:
    row = BenchRow(BenchTest("tg", 64, 4096, 2), (10.0, 30.0, 20.0), 500, 20_000.0, 7).to_dict()
    assert row["test"] == "tg64"
    assert (row["depth"], row["threads"], row["bytes_per_token"]) == (4096, 2, 500)
    assert row["tokens_per_second"] == {"median": 20.0, "mean": 20.0, "sd": 10.0}
    assert row["roofline_fraction"] == 0.5
    assert (row["macs_per_token"], row["macs_per_second"]) == (7, 140.0)


def test_one_repetition_has_no_deviation() -> None:
    assert BenchRow(BenchTest("tg", 1, 0, 1), (10.0,), 1, 1.0).deviation == 0.0


def test_no_repetitions_are_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="0 repetitions were asked for"):
        list(run_tests(session, plan_tests([4], [], [0], [1], CONTEXT), repetitions=0))


def test_an_artifact_without_the_read_loop_says_so(session: Session, monkeypatch: Any) -> None:
    monkeypatch.setattr(session.module, "_has", lambda name: False)
    with pytest.raises(UnsupportedError, match="the artifact's library has no function 'read_bandwidth'"):
        list(run_tests(session, plan_tests([4], [], [0], [1], CONTEXT), repetitions=1))
