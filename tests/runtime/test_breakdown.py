"""Time by kernel: sums and medians on made-up times, both sources on functions whose time is known."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from bitwright.errors import UsageError
from bitwright.runtime.artifact import StepRecord
from bitwright.runtime.bench import plan_tests, profile_tests
from bitwright.runtime.breakdown import Breakdown, KernelTime, median_times, sum_by_name
from bitwright.runtime.decode_step import DecodeStep
from bitwright.runtime.profile import profile_step
from bitwright.runtime.session import Session
from bitwright.tvm_runtime import load_runtime
from tests.runtime import toy as toy_model
from tests.runtime.toy_fixtures import THREADS

VOCAB = 5


def test_calls_of_one_kernel_are_summed_in_the_order_of_the_first() -> None:
    calls = [KernelTime("b", 1, 1.0, 10), KernelTime("a", 1, 2.0, 0), KernelTime("b", 1, 3.0, 20)]
    assert sum_by_name(calls) == [KernelTime("b", 2, 4.0, 30), KernelTime("a", 1, 2.0, 0)]


def test_the_median_is_taken_kernel_by_kernel() -> None:
    runs = [[KernelTime("a", 2, first, 8), KernelTime("b", 1, second, 0)] for first, second in ((1, 9), (2, 7), (3, 8))]
    assert median_times(runs) == (KernelTime("a", 2, 2, 8), KernelTime("b", 1, 8, 0))


def test_what_is_left_lies_outside_kernels() -> None:
    step = Breakdown("tg1", 4, 2, 10.0, (KernelTime("a", 3, 6.0, 30), KernelTime("b", 1, 3.0, 0)), 10.0)
    assert step.outside == 1.0
    document = step.to_dict()
    assert document["outside_kernels"] == {"seconds": 1.0, "share": 0.1}
    assert document["kernels"][0] == {
        "name": "a",
        "calls": 3,
        "seconds": 6.0,
        "share": 0.6,
        "bytes": 30,
        "bytes_per_second": 5.0,
        "roofline_fraction": 0.5,
    }


def test_a_step_is_timed_by_its_cycle_counter() -> None:
    record = StepRecord(
        shared_bytes=64,
        private_bytes=0,
        threads=1,
        barrier_words=8,
        barriers=1,
        tasks=(("linear", 1000, 0), ("attention", 0, 16), ("linear", 500, 0)),
    )
    # Three cycles a nanosecond; tasks take 1, 2 and 1 ms, and a millisecond before them belongs to none.
    lengths, before, cycles_per_second = np.array([0, 1, 2, 1]) * 1e-3, 1e-3, 3e9

    def step(*arguments: Any) -> None:
        start, ticks = time.perf_counter() + before, np.from_dlpack(arguments[7])
        assert arguments[-1] == 1, "asked to profile"
        ticks[:] = (start + np.cumsum(lengths)) * cycles_per_second
        while time.perf_counter() < start + lengths.sum():
            pass

    zeros = np.zeros(16, "float32")
    decode = DecodeStep(load_runtime(), step, record, VOCAB, [zeros], [zeros])
    for _ in range(3):
        linear, attention = decode.profile(3, 9, 1)
        assert (linear.name, linear.calls, linear.nbytes) == ("linear", 2, 1500)
        assert (attention.name, attention.calls, attention.nbytes) == ("attention", 1, 16 * 10)
        assert linear.seconds == pytest.approx(2e-3, rel=0.2)
        assert attention.seconds == pytest.approx(linear.seconds, rel=1e-6)


@pytest.mark.parametrize("tokens", [1, toy_model.CHUNK])
def test_the_vm_shows_every_kernel_and_what_it_reads(session: Session, toy: Any, tokens: int) -> None:
    depth = 7
    before = session.logits([1, 2, 3])
    found = profile_step(session, tokens, depth, iter([3e9, 5e9]).__next__, repetitions=2)
    assert (found.test, found.depth, found.threads) == ("tg1" if tokens == 1 else f"pp{tokens}", depth, THREADS)
    assert found.bandwidth == 4e9
    append, logits = found.kernels
    assert append.name.startswith("append_") and logits.name.startswith("logits_")
    assert (append.calls, logits.calls) == (1, 1)
    # The embedding is looked up. ``logits`` takes the token ids too, so its matrix does not count either.
    assert append.nbytes == 0
    assert logits.nbytes == (depth + tokens) * toy_model.WIDTH * 4
    assert 0 < append.seconds + logits.seconds < 1
    # The instrument is gone, and nothing that it ran has changed what the session computes.
    np.testing.assert_array_equal(session.logits([1, 2, 3]), before)


def test_a_cache_that_is_filled_is_not_filled_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[int] = []
    prefill = session.prefill
    monkeypatch.setattr(session, "prefill", lambda ids: filled.append(len(ids)) or prefill(ids))
    for depth in (7, 7, 5):
        found = profile_step(session, 1, depth, lambda: 1.0, repetitions=1, turns=1)
        assert found.depth == session.position == depth
    assert [count for count in filled if count > 1] == [7, 5]


def test_more_tokens_than_a_chunk_are_refused(session: Session) -> None:
    with pytest.raises(UsageError, match=f"{toy_model.CHUNK + 1} tokens cannot be profiled"):
        profile_step(session, toy_model.CHUNK + 1, 0, lambda: 1.0)


def test_one_profile_per_kind_depth_and_thread_count(session: Session) -> None:
    tests = plan_tests([4, 20], [2, 3], [0, 8], [1], toy_model.CONTEXT)
    found = [(entry.test, entry.depth) for entry in profile_tests(session, tests, repetitions=1)]
    chunk = f"pp{toy_model.CHUNK}"
    assert found == [(chunk, 0), ("tg1", 0), (chunk, 8), ("tg1", 8)]
