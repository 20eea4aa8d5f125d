"""Real kernels: a candidate that is wrong is found out, and a few trials of a small one leave usable records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitwright.autotune import linear_task
from bitwright.autotune.isolation import IsolatedWorker, MeasuringError
from bitwright.autotune.linear_task import ENTRY, measure_with, schedule_of, spec_of
from bitwright.autotune.records import read_records
from bitwright.autotune.store import TunedSchedules
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import AVX2, select_isa
from bitwright.codegen.linear import default_schedule
from bitwright.errors import NumericalError
from bitwright.target import Target
from bitwright.timing.tuning import Request, tune_workloads
from bitwright.tvm_runtime import use_threads


def native(shape: tuple[int, ...], scheme: str, m: int = 1) -> Workload:
    target = Target.parse("native")
    return Workload("linear", shape, scheme, m, min(target.cores, 2), select_isa(target.features).name)


def test_a_tiny_run_measures_records_and_is_used(tmp_path: Path) -> None:
    work = native((192, 576), "u4g32a8")
    steps: list[tuple[int, int]] = []
    request = Request(trials=3, strategy="random", output=tmp_path / "r.jsonl")
    (found,) = tune_workloads([work, work], request, lambda _, done, wanted, best: steps.append((done, wanted)))
    assert found.measured == 3 and found.failed == 0
    assert steps[:3] == [(1, 3), (2, 3), (3, 3)]
    # A cold read of 60 kB takes microseconds on any machine, and not as long as a launch of threads.
    assert 2e-7 < found.default_seconds < 1e-3
    records = tuple(read_records(tmp_path / "r.jsonl"))
    assert {r.fingerprint for r in records} == {Target.parse("native").fingerprint}
    schedules = TunedSchedules(records, records[0].fingerprint, work.threads)
    isa = select_isa(Target.parse("native").features)
    assert schedules(spec_of(work), isa) == schedule_of(found.best, spec_of(work), isa)


@pytest.mark.parametrize(
    ("scheme", "m"), [("u3g64za16", 1), ("u4rowa8", 1), ("f16", 1), ("u6g32a8", 1), ("u4g32a8", 5), ("u2g32za16", 5)]
)
def test_every_kind_of_kernel_is_checked_and_timed(scheme: str, m: int) -> None:
    work = native((96, 192), scheme, m)
    seconds, default_seconds = linear_task.measure({"target": "native", "workload": work.to_json(), "knobs": {}})
    assert 0 < seconds < 0.1 and 0 < default_seconds < 0.1


def test_a_pool_that_a_session_left_smaller_is_no_wait_forever() -> None:
    work = native((96, 192), "u4g32a8")
    use_threads(1)
    seconds, _ = linear_task.measure({"target": "native", "workload": work.to_json(), "knobs": {}})
    assert seconds > 0


def test_a_wrong_kernel_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.codegen.reference import linear as reference

    real = reference.linear_packed
    monkeypatch.setattr(reference, "linear_packed", lambda *arguments: real(*arguments) * 1.001)
    work = native((96, 192), "u4g32a8")
    with pytest.raises(NumericalError, match="differs from the oracle"):
        linear_task.measure({"target": "native", "workload": work.to_json(), "knobs": {}})


def test_a_knob_that_does_not_exist_is_a_failure() -> None:
    work = native((96, 192), "u4g32a8")
    with IsolatedWorker(ENTRY, 60) as worker:
        measure = measure_with(worker, "native")
        with pytest.raises(MeasuringError, match="is no schedule"):
            measure(work, {"prefetch": 7})
        with pytest.raises(MeasuringError, match="unexpected keyword"):
            measure(work, {"colour": 1})


def test_spaces_hold_the_default_and_float_weights_have_none() -> None:
    for scheme in ("u4g32a8", "u2rowa8", "u8g128a16"):
        task = linear_task.linear_task(Workload("linear", (576, 1536), scheme, 1, 2, "avx512vnni"), "")
        assert task is not None and task.default in task.space
    prefill = linear_task.linear_task(Workload("linear", (576, 1536), "u4g32a8", 128, 2, "avx512vnni"), "")
    assert prefill is not None and set(prefill.space[0]) >= {"rows", "columns"}
    assert linear_task.linear_task(Workload("linear", (576, 1536), "f16", 1, 2, "avx2"), "") is None


def test_given_knobs_replace_the_defaults() -> None:
    spec: Any = spec_of(Workload("linear", (64, 64), "u4g32a8", 1, 2, "avx2"))
    assert schedule_of({"chain": 2}, spec, AVX2) == replace(default_schedule(spec, AVX2), chain=2)


def test_latencies_are_measured_once_and_kept(tmp_path: Path) -> None:
    from bitwright.autotune.latency_file import open_table, read_table
    from bitwright.target import Target
    from bitwright.timing.latencies import measure_kernels

    target, path = Target.parse("native"), tmp_path / "t.json"
    decode, told = native((192, 576), "u4g32a8"), []
    prompt = replace(decode, m=8)
    attention = Workload("attention", (4, 2, 32, 64), "k4g32v16", 1, decode.threads, decode.isa)
    wanted = [decode, prompt, attention]
    table = open_table(path, target.fingerprint, decode.isa, decode.threads)
    measure_kernels(table, path, wanted, target, told.append)
    assert all(table.look_up(work).measured for work in wanted) and len(table.entries) == 9
    assert told[-1] == "time kernels 9/9"
    assert read_table(path) == table
    again = len(table.disturbed)  # by other work on the machine: these are repeated, nothing else
    measure_kernels(table, path, wanted, target, told.append)
    assert told[-1] == (f"time kernels {again}/{again}" if again else "time kernels 9/9")
    assert len(told) == 10 + (again + 1 if again else 0)


def test_scales_of_activations_have_every_mantissa() -> None:
    """Kernels look products of scales up: with few of them the table would stay in the nearest cache."""
    from bitwright.autotune.arena import Arena
    from bitwright.codegen.layout import TensorSpec
    from bitwright.codegen.quantized_rows import LEVELS

    arena = Arena(1 << 20)
    scales = arena.hot(TensorSpec("scale", "float32", (64, 18)))
    assert sorted(set((scales.ravel() * LEVELS).tolist())) == [float(LEVELS + n) for n in range(LEVELS)]
    assert arena.hot(TensorSpec("scales", "float16", (64,))).dtype == "float16"
    assert len(set(arena.hot(TensorSpec("x", "float32", (64, 18))).ravel().tolist())) > LEVELS
