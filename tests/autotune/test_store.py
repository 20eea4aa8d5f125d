"""Which records a compilation uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitwright.autotune import store
from bitwright.autotune.records import RecordFile
from bitwright.autotune.store import TunedSchedules, best_schedule, load_records, same_code, user_file
from bitwright.codegen.isa import AVX2, AVX512VBMI, AVX512VNNI
from bitwright.codegen.linear import LinearSpec, default_schedule
from bitwright.errors import InputError
from bitwright.scheme import LinearScheme
from bitwright.target import KERNELS

from .synthetic import MADE_BY, record, workload

KNOBS = {"prefetch": 4096, "chain": 2}
OTHER = {"prefetch": 0, "chain": 8}
SPEC = LinearSpec(1536, 576, LinearScheme.parse("u4g32a8"), rows=1)


def test_this_target_comes_before_others_of_its_kind() -> None:
    work = workload()
    foreign, own = record(work, KNOBS, "there", 0.5), record(work, OTHER, "here", 0.9)
    assert best_schedule(work, [foreign, own], "here") == OTHER
    assert best_schedule(work, [foreign], "here") == KNOBS
    assert best_schedule(workload(m=128), [foreign, own], "here") is None
    # Where the default won on this target, others' gains count nothing.
    assert best_schedule(work, [foreign, record(work, OTHER, "here", 1.2)], "here") is None


def test_schedules_are_tuned_where_recorded_and_say_what_they_used() -> None:
    schedules = TunedSchedules((record(workload(), KNOBS, ratio=0.8),), "here", 2)
    assert schedules.digest == ""
    other = LinearSpec(64, 576, SPEC.scheme, rows=1)
    assert schedules(other, AVX512VNNI) == default_schedule(other, AVX512VNNI)
    assert schedules.digest == ""
    expected = default_schedule(SPEC, AVX512VNNI)
    assert schedules(SPEC, AVX512VNNI) == replace(expected, prefetch=4096, chain=2)
    assert schedules(SPEC, AVX2) == default_schedule(SPEC, AVX2)
    assert len(schedules.digest) == 64
    again = TunedSchedules((record(workload(), KNOBS, ratio=0.7),), "here", 2)
    again(SPEC, AVX512VNNI)
    assert again.digest == schedules.digest


def test_instruction_sets_that_differ_in_look_ups_only_share_records() -> None:
    schedules = TunedSchedules((record(workload(), KNOBS, ratio=0.8),), "here", 2)
    assert schedules(SPEC, AVX512VBMI).prefetch == KNOBS["prefetch"]
    assert same_code(AVX512VBMI) == ["avx512vbmi", "avx512vnni"] and same_code(AVX2) == ["avx2"]


def test_named_records_must_hold_something_for_the_instruction_set(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "r.jsonl", "here") as file:
        file.append(record(workload(), KNOBS, ratio=0.8))
    assert len(load_records(tmp_path / "r.jsonl", AVX512VNNI, "elsewhere", "znver4")) == 1
    with pytest.raises(InputError, match="hold nothing for this target") as caught:
        load_records(tmp_path / "r.jsonl", AVX2, "here", "znver4")
    assert caught.value.limit == f"kernels for avx2, of generation {KERNELS}"


def test_the_users_records_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = user_file("f00")
    assert path == tmp_path / "bitwright" / "records" / "f00.jsonl"
    path.parent.mkdir(parents=True)
    with RecordFile(path, "f00") as file:
        file.append(record(workload(), KNOBS, "f00", 0.8))
    assert load_records(None, AVX512VNNI, "f00", "znver4")[0].fingerprint == "f00"


def test_shipped_records_are_found_for_the_cpu_and_the_instruction_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(store, "SHIPPED", tmp_path)
    with RecordFile(tmp_path / "znver4-avx512vnni.jsonl", "there") as file:
        file.append(record(workload(), KNOBS, "there", 0.8))
    assert [r.fingerprint for r in load_records(None, AVX512VBMI, "here", "znver4")] == ["there"]
    assert load_records(None, AVX2, "here", "znver4") == ()
    assert load_records(None, AVX512VBMI, "here", "znver5") == ()


def test_records_of_kernels_of_another_generation_are_left_out(tmp_path: Path) -> None:
    """Their knobs were compared with defaults that are no more."""
    old = replace(record(workload(), KNOBS, ratio=0.8), versions={**MADE_BY, "kernels": str(KERNELS - 1)})
    with RecordFile(tmp_path / "r.jsonl", "here") as file:
        file.append(old)
    with pytest.raises(InputError, match="hold nothing for this target"):
        load_records(tmp_path / "r.jsonl", AVX512VNNI, "here", "znver4")


def test_where_nobody_tuned_for_as_many_threads_the_nearest_number_serves() -> None:
    one, eight = (replace(workload(), threads=threads) for threads in (1, 8))
    records = (record(one, KNOBS, "there", 0.8), record(eight, OTHER, "there", 0.8))
    default = default_schedule(SPEC, AVX512VNNI)
    assert TunedSchedules(records, "here", 2)(SPEC, AVX512VNNI) == replace(default, **KNOBS)
    assert TunedSchedules(records, "here", 6)(SPEC, AVX512VNNI) == replace(default, **OTHER)
    # Where the default won with as many threads, others' gains count nothing; a failure says nothing.
    won = record(workload(), KNOBS, "there", 1.2)
    assert TunedSchedules((won, *records), "here", 2)(SPEC, AVX512VNNI) == default
    failed = replace(won, seconds=None, default_seconds=None, failure="it did not build")
    assert TunedSchedules((failed, *records), "here", 2)(SPEC, AVX512VNNI) == replace(default, **KNOBS)
