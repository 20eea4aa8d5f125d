"""TVM's runtime library, loaded without TVM's Python package, and its thread pool.

A process that runs an artifact holds ``libtvm_ffi`` and ``libtvm_runtime`` only: neither TVM's compiler nor torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from bitwright.errors import UnsupportedError, UsageError
from bitwright.runtime.host import physical_cores

_BIG_CORES = 1  # tvm::runtime::threading::ThreadGroup::kBig
_environment_lock = threading.Lock()
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


def choose_threads(threads: int | None) -> int:
    """The number of threads to compute with: ``threads``, by default one per physical core.

    Raises:
        UsageError: no positive number, or more than this process has processors.
    """
    available = len(os.sched_getaffinity(0))
    if threads is None:
        return physical_cores()
    if threads < 1 or threads > available:
        raise UsageError(
            f"{threads} threads were asked for",
            limit=f"this process may use {available} processors",
            remedy=f"choose 1 to {available}",
        )
    return threads


def use_threads(threads: int) -> None:
    """Let parallel kernels called from this Python thread run on ``threads`` threads.

    TVM keeps one pool of workers per calling thread, whose size is fixed by the environment when it is first used;
    later calls only use fewer of them. Workers are not bound to cores (``TVM_BIND_THREADS=1`` in the environment does
    that).

    Raises:
        UnsupportedError: TVM made this thread's pool before bitwright did, and made it too small.
    """
    if getattr(_configured, "threads", None) == threads:
        return
    tvm_ffi = load_runtime()
    count = tvm_ffi.get_global_func("runtime.NumThreads")
    with _pool_environment():
        count()
        tvm_ffi.get_global_func("runtime.config_threadpool")(_BIG_CORES, threads)
    if count() != threads:
        raise UnsupportedError(
            f"TVM's thread pool has {count()} threads",
            limit=f"{threads} were asked for",
            remedy=f"set TVM_NUM_THREADS={threads} in the environment before Python starts",
        )
    _configured.threads = threads


@contextmanager
def _pool_environment() -> Iterator[None]:
    """The variables that TVM reads while it makes a pool. By default it would use half of the processors on x86."""
    wanted = {"TVM_NUM_THREADS": str(len(os.sched_getaffinity(0))), "TVM_BIND_THREADS": "0"}
    with _environment_lock:
        missing = [name for name in wanted if name not in os.environ]
        os.environ.update({name: wanted[name] for name in missing})
        try:
            yield
        finally:
            for name in missing:
                del os.environ[name]
