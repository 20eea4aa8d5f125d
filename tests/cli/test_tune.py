"""``bitwright tune`` on fabricated searches: what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitwright.autotune.search import Outcome, Task
from bitwright.autotune.space import Space
from bitwright.autotune.workload import Workload
from bitwright.errors import UsageError

WORK = Workload("linear", (576, 1536), "u4g32a8", 1, 2, "avx2")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.timing import tuning

    def search(workloads: Any, request: Any, progress: Any) -> Iterator[Outcome]:
        assert list(workloads) == [WORK] and request.trials == 7 and request.strategy == "random"
        task = Task(WORK, Space.of({"chain": (2, 4)}), {"chain": 4})
        progress(WORK, 1, 7, None)
        progress(WORK, 2, 7, 0.8)
        yield Outcome(task, {"chain": 2}, 0.8, 8e-6, 1e-5, 6, 1)

    monkeypatch.setattr(tuning, "workloads_of", lambda model, request, scheme: [WORK])
    monkeypatch.setattr(tuning, "tune_workloads", search)


ARGUMENTS = ("tune", "somewhere", "-n", "7", "--strategy", "random")


def test_the_table_compares_default_and_tuned(command: Any, found: None) -> None:
    done = command(*ARGUMENTS)
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.decode().splitlines()
    assert header.split() == ["kernel", "default", "tuned", "gain", "measured", "failed", "knobs"]
    assert row.split() == f"{WORK} 10.00 µs 8.00 µs +25.0 % 6 1 chain 2".split()


def test_json_is_one_document(command: Any, found: None) -> None:
    document = json.loads(command(*ARGUMENTS, "--json").stdout)
    (one,) = document["workloads"]
    assert one["gain"] == pytest.approx(0.25) and one["best"] == {"chain": 2} and one["workload"] == WORK.to_json()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--strategy", "luck"], "'luck' is no strategy"),
        (["-n", "0"], "0 trials"),
        (["--tokens", "1,0"], "numbers from 1"),
        (["--tokens", "few"], "'few' is no list of counts"),
        (["--seconds", "0"], "0.0 seconds"),
        (["--target", "z80"], "'z80' is not a target"),
    ],
)
def test_senseless_options_are_usage_errors(command: Any, arguments: list[str], text: str) -> None:
    done = command("tune", "somewhere", *arguments)
    assert done.returncode == 2 and text in done.stderr.decode()


def test_an_artifact_that_does_not_tell_its_kernels_is_unsupported(command: Any, artifact_path: Path) -> None:
    done = command("tune", artifact_path)
    assert done.returncode == 5 and "does not tell its kernels" in done.stderr.decode()
    done = command("tune", artifact_path, "--scheme", "u4g32a8")
    assert done.returncode == 2 and "an artifact has its own schemes" in done.stderr.decode()


def test_a_target_that_this_machine_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from bitwright.target import Target
    from bitwright.timing import tuning

    native = Target.parse("native")
    bare = replace(native, features=frozenset())
    foreign = replace(
        native, name="foreign", features=native.features | {"avx512vnni", "avx512f", "avx512bw", "avx512vl"}
    )
    monkeypatch.setattr(Target, "parse", lambda name: foreign if name == "foreign" else bare)
    with pytest.raises(UsageError, match="cannot run code for foreign"):
        list(tuning.tune_workloads([WORK], tuning.Request(target="foreign"), lambda *_: None))


def test_a_step_names_its_matrix_products() -> None:
    from bitwright.timing.tuning import _LINEAR

    match = _LINEAR.fullmatch("linear_u3g64za8_960x576_decode")
    assert match is not None and match.groupdict() == {"scheme": "u3g64za8", "outputs": "960", "inputs": "576"}
    assert _LINEAR.fullmatch("linear_u4g32a8x960_u3g32a8x512_x576") is None
    assert _LINEAR.fullmatch("attention_9x64_decode") is None
