"""Candidates that crash, hang or raise are failures, not the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitwright.autotune.isolation import IsolatedWorker, MeasuringError
from bitwright.errors import InternalError

ENTRY = "tests.autotune.victims:obey"


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ("crash", "the process ended with signal 11"),
        ("exit", "the process ended with exit code 7: LLVM ERROR: no space"),
        ("hang", "it did not end within 1 s"),
    ],
)
def test_a_lost_process_is_a_failure_and_replaced(request_: str, text: str) -> None:
    with IsolatedWorker(ENTRY, timeout=1) as worker:
        first = worker("before")
        with pytest.raises(MeasuringError, match=text):
            worker(request_)
        second = worker("after")
        assert second["answer"] == "after" and second["process"] != first["process"]
        assert not alive(first["process"])


def test_what_raises_is_a_failure_of_the_same_process() -> None:
    with IsolatedWorker(ENTRY, timeout=30) as worker:
        first = worker("before")
        with pytest.raises(MeasuringError, match="ValueError: that does not fit"):
            worker("raise")
        with pytest.raises(MeasuringError, match="no such kernel where: here"):
            worker("refuse")
        assert worker("print") == {"answer": "print", "process": first["process"]}
    assert not alive(first["process"])


def test_a_worker_that_cannot_start_is_an_internal_error() -> None:
    with IsolatedWorker("tests.autotune.absent:obey", timeout=1) as worker:
        with pytest.raises(InternalError, match="does not start") as caught:
            worker("anything")
        assert "No module named 'tests.autotune.absent'" in str(caught.value.limit)


def test_a_worker_ends_with_its_parent() -> None:
    script = (
        "import os, time\n"
        "from bitwright.autotune.isolation import IsolatedWorker\n"
        f"worker = IsolatedWorker({ENTRY!r}, 60)\n"
        "print(worker('x')['process'], flush=True)\n"
        "os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    process = int(done.stdout)
    deadline = time.monotonic() + 10
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(process)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return not is_zombie(process)


def is_zombie(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
