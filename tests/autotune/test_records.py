"""Tuning records: what is written is read, what is damaged or foreign is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitwright.autotune.records import Record, RecordFile, read_records
from bitwright.autotune.space import Space
from bitwright.autotune.workload import Workload
from bitwright.errors import InputError, InternalError

from .synthetic import DEFAULT, record, workload


def written(path: Path, *records: Record) -> Path:
    with RecordFile(path, "here") as file:
        for one in records:
            file.append(one)
    return path


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    failed = record(workload(), {**DEFAULT, "blocks": 8, "unroll": 8})
    assert failed.failure == "too many registers" and failed.ratio is None
    records = [record(workload(), DEFAULT), failed, record(workload(m=128), DEFAULT)]
    path = written(tmp_path / "r.jsonl", *records)
    assert read_records(path) == records
    assert all(json.loads(line)["record_version"] == 1 for line in path.read_text().splitlines())


def test_each_record_is_on_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "r.jsonl", "here") as file:
        file.append(record(workload(), DEFAULT))
        assert len(read_records(tmp_path / "r.jsonl")) == 1


def test_a_torn_last_line_is_ignored_and_then_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record(workload(), DEFAULT))
    whole = path.read_text()
    path.write_text(whole + whole[:50])
    assert len(read_records(path)) == 1
    written(path, record(workload(m=4), DEFAULT))
    assert [r.workload.m for r in read_records(path)] == [1, 4]
    assert path.read_text().startswith(whole)


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record(workload(), DEFAULT))
    path.write_text(path.read_text()[:50] + "\n" + path.read_text())
    with pytest.raises(InputError, match="not JSON") as caught:
        read_records(path)
    assert caught.value.where == f"{path}:1"


def test_records_of_another_target_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record(workload(), DEFAULT))
    before = path.read_bytes()
    with pytest.raises(InputError, match="measured on another target") as caught:
        RecordFile(path, "elsewhere")
    assert "here" in str(caught.value.where) and "elsewhere" in str(caught.value.limit)
    assert path.read_bytes() == before


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        RecordFile(tmp_path / "absent" / "r.jsonl", "here").__enter__()
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"record_version": 2}, "unknown version"),
        ({"fingerprint": 3}, "fingerprint is no str"),
        ({"knobs": {"blocks": [1]}}, "neither a number nor a word"),
        ({"seconds": "1"}, "time is no number"),
        ({"seconds": None}, "neither times nor a failure"),
        ({"seconds": -1.0}, "neither times nor a failure"),
        ({"failure": "x"}, "both a failure and times"),
        ({"failure": 4}, "failure is no text"),
        ({"workload": {}}, "other fields"),
        ({"workload": {**workload().to_json(), "m": "1"}}, "m is no int"),
        ({"workload": {**workload().to_json(), "shape": ["1"]}}, "no list of integers"),
        ({"workload": {**workload().to_json(), "shape": [0, 1]}}, "extent below 1"),
        ({"workload": {**workload().to_json(), "op": "a b"}}, "malformed name"),
    ],
)
def test_a_malformed_record_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    document = {**json.loads(record(workload(), DEFAULT).to_line()), **change}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(document) + "\n")
    with pytest.raises(InputError, match=text):
        read_records(path)


def test_workloads_go_through_json() -> None:
    work = workload()
    assert Workload.from_json(json.loads(json.dumps(work.to_json())), "here") == work
    assert str(work) == "linear 1536x576 u4g32a8 m1 t2 avx512vnni"


def test_spaces_number_their_candidates() -> None:
    space = Space.of({"a": (1, 2, 3), "b": ("x", "y")})
    assert len(space) == 6 and [dict(k) for k in space][3] == {"a": 2, "b": "y"}
    assert all(k in space for k in space) and {"a": 4, "b": "x"} not in space and {"a": 1} not in space
    assert [dict(k) for k in space.neighbours({"a": 1, "b": "x"})] == [
        {"a": 2, "b": "x"},
        {"a": 3, "b": "x"},
        {"a": 1, "b": "y"},
    ]
    with pytest.raises(IndexError):
        space[6]
    for knobs in ({}, {"a": ()}, {"a": (1, 1)}):
        with pytest.raises(InternalError, match="not distinct"):
            Space.of(knobs)
