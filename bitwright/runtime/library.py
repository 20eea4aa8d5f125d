"""TVM's runtime library, loaded without TVM's Python package, and its thread pool.

A process that runs an artifact holds ``libtvm_ffi`` and ``libtvm_runtime`` only: neither TVM's compiler nor torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from bitwright.errors import UnsupportedError, UsageError
from bitwright.runtime.host import physical_cores

NUM_THREADS = "TVM_NUM_THREADS"
_BIG_CORES = 1  # tvm::runtime::threading::ThreadGroup::kBig
_configured = threading.local()


@lru_cache(maxsize=1)
def load_runtime() -> Any:
    """Load ``libtvm_runtime.so`` and return the ``tvm_ffi`` module.

    Raises:
        UnsupportedError: TVM is not installed.
    """
    tvm_ffi = _import_tvm_ffi()
    # find_spec looks the package up without running its code.
    spec = importlib.util.find_spec("tvm")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    libraries = [path for folder in folders if (path := Path(folder) / "lib" / "libtvm_runtime.so").is_file()]
    if not libraries:
        raise UnsupportedError(
            "the TVM runtime library is not installed",
            where="libtvm_runtime.so",
            remedy="install the pinned pair: pip install bitwright",
        )
    ctypes.CDLL(str(libraries[0]), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def _import_tvm_ffi() -> Any:
    """Import tvm_ffi, keeping it from importing torch: it does so whenever torch is installed (2 s, 200 MB)."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` raise ImportError
    try:
        import tvm_ffi
    finally:
        if hide:
            del sys.modules["torch"]
    return tvm_ffi


def choose_threads(threads: int | None, room: int | None = None) -> int:
    """The number of threads to compute with: ``threads``, by default one per physical core.

    Args:
        room: most threads that an artifact's decode step has memory for; None: any number.

    Raises:
        UsageError: no positive number, or more than this process may use or the artifact has room for.
    """
    available = min(len(os.sched_getaffinity(0)), _pool_limit())
    if threads is None:
        return min(physical_cores(), available, room or available)
    if threads < 1 or threads > available:
        raise UsageError(
            f"{threads} threads were asked for",
            limit=f"this process may use {available} (its processors, and {NUM_THREADS} in the environment)",
            remedy=f"choose 1 to {available}",
        )
    if room is not None:
        require_room(threads, room)
    return threads


def require_room(threads: int, room: int) -> None:
    """Check that an artifact's decode step has memory for so many threads.

    Raises:
        UsageError: it has not.
    """
    if threads > room:
        raise UsageError(
            f"{threads} threads were asked for",
            limit=f"the artifact's decode step was compiled for at most {room}",
            remedy=f"choose 1 to {room}, or compile the model again",
        )


def _pool_limit() -> int:
    """What the environment allows TVM: bitwright sets it to the number of processors, unless the user did."""
    text = os.environ.get(NUM_THREADS, "")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(
            f"{NUM_THREADS} is {text!r}", where="environment", limit="a whole number from 1", remedy="unset it"
        )
    return int(text)


def use_threads(threads: int) -> None:
    """Let parallel kernels called from this Python thread run on ``threads`` threads.

    TVM keeps one pool of workers per calling thread. The environment fixes its size when it is first used; later calls
    only use fewer of them. TVM reads the environment at every launch all the same, and runs all shares one after the
    other where it says 1: threads that wait for each other would wait forever.

    Raises:
        UsageError: the environment was changed and allows fewer threads now.
        UnsupportedError: TVM made this thread's pool before bitwright was imported, and made it too small.
    """
    if (allowed := _pool_limit()) < threads:
        raise UsageError(
            f"{threads} threads were asked for",
            where="environment",
            limit=f"{NUM_THREADS} is {allowed}",
            remedy=f"do not change {NUM_THREADS} while a model is loaded, or load it with threads={allowed}",
        )
    if getattr(_configured, "threads", None) == threads:
        return
    tvm_ffi = load_runtime()
    count = tvm_ffi.get_global_func("runtime.NumThreads")
    count()  # makes the pool, unless it is there
    tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, threads)
    if count() != threads:
        raise UnsupportedError(
            f"TVM's thread pool has {count()} threads",
            limit=f"{threads} were asked for",
            remedy="import bitwright before anything runs a TVM kernel in this process",
        )
    _configured.threads = threads
