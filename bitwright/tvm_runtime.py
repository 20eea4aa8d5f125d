"""TVM's runtime library, loaded without TVM's Python package, and its thread pool.

A process that runs an artifact holds ``libtvm_ffi`` and ``libtvm_runtime`` only: neither TVM's compiler nor torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from bitwright.errors import UnsupportedError, UsageError

NUM_THREADS = "TVM_NUM_THREADS"
_BIG_CORES = 1  # tvm::runtime::threading::ThreadGroup::kBig


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


def pool_limit() -> int:
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
    other where it says 1: threads that wait for each other would wait forever. So they would if someone else had told
    TVM to use fewer threads since: the pool is asked at every call.

    Raises:
        UsageError: the environment was changed and allows fewer threads now.
        UnsupportedError: TVM made this thread's pool before bitwright was imported, and made it too small.
    """
    if (allowed := pool_limit()) < threads:
        raise UsageError(
            f"{threads} threads were asked for",
            where="environment",
            limit=f"{NUM_THREADS} is {allowed}",
            remedy=f"do not change {NUM_THREADS} while a model is loaded, or load it with threads={allowed}",
        )
    count, configure = _pool()
    if count() == threads:  # makes the pool, unless it is there
        return
    configure(_BIG_CORES, threads)
    if count() != threads:
        raise UnsupportedError(
            f"TVM's thread pool has {count()} threads",
            limit=f"{threads} were asked for",
            remedy="import bitwright before anything runs a TVM kernel in this process",
        )


@lru_cache(maxsize=1)
def _pool() -> tuple[Any, Any]:
    """TVM's functions that tell and choose how many threads the calling thread's kernels run on."""
    tvm_ffi = load_runtime()
    return tvm_ffi.get_global_func("runtime.NumThreads"), tvm_ffi.get_global_func("runtime.config_threadpool")
