"""The TVM runtime in a process: threads, the environment, other Python threads, TVM used before us."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright import tvm_runtime
from bitwright.errors import UnsupportedError, UsageError
from bitwright.runtime import threads as counts
from bitwright.runtime.session import Session

PROCESSORS = len(os.sched_getaffinity(0))


def workers() -> int:
    """Threads of TVM's pool as the calling thread sees it."""
    return int(tvm_runtime.load_runtime().get_global_func("runtime.NumThreads")())


@pytest.mark.parametrize("threads", range(1, PROCESSORS + 1))
def test_as_many_threads_as_asked_for(threads: int) -> None:
    tvm_runtime.use_threads(threads)
    assert workers() == threads


def test_a_session_may_be_used_from_another_python_thread(session: Session, toy: Any) -> None:
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(session.logits([1, 2, 3])))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], toy.logits([1, 2, 3]))


def test_threads_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= counts.choose_threads(None) <= PROCESSORS
    with pytest.raises(UsageError, match=f"this process may use {PROCESSORS} "):
        counts.choose_threads(PROCESSORS + 1)
    assert counts.choose_threads(None, room=1) == 1
    with pytest.raises(UsageError, match="compiled for at most 2"):
        counts.require_room(3, room=2)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    assert counts.choose_threads(None) == 1
    with pytest.raises(UsageError, match="this process may use 1 "):
        counts.choose_threads(2)


@pytest.mark.skipif(PROCESSORS < 2, reason="needs two processors")
def test_an_environment_that_changes_later_is_an_error_not_a_wait_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    tvm_runtime.use_threads(2)
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    with pytest.raises(UsageError, match="2 threads were asked for"):
        tvm_runtime.use_threads(2)


@pytest.mark.skipif(PROCESSORS < 2, reason="needs two processors")
def test_a_pool_that_someone_else_made_smaller_is_made_as_large_again() -> None:
    tvm_runtime.use_threads(2)
    tvm_runtime.load_runtime().get_global_func("runtime.config_threadpool")(1, 1)
    assert workers() == 1
    tvm_runtime.use_threads(2)
    assert workers() == 2


@pytest.mark.parametrize("text", ["many", "", "0", "-1"])
def test_a_thread_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", text)
    with pytest.raises(UsageError, match=f"TVM_NUM_THREADS is '{text}'"):
        counts.choose_threads(None)


def test_a_missing_tvm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="the TVM runtime library is not installed"):
        tvm_runtime.load_runtime.__wrapped__()


IMPORTED_LATE = """
import os, sys, tvm_ffi, tvm
tvm_ffi.get_global_func("runtime.NumThreads")()  # makes this thread's pool, of one thread
import bitwright
try:
    bitwright.load(sys.argv[1], threads=2).logits([1])
except bitwright.errors.UnsupportedError as error:
    print(error)
"""


@pytest.mark.skipif(PROCESSORS < 2, reason="needs two processors")
def test_a_pool_that_tvm_made_too_small_is_an_error_not_a_slow_answer(artifact_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TVM")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_LATE, str(artifact_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"},
    )
    assert done.stdout.splitlines() == [
        "TVM's thread pool has 1 threads",
        "  limit: 2 were asked for",
        "  remedy: import bitwright before anything runs a TVM kernel in this process",
    ], done.stderr
