"""llama.cpp's C library with its log turned down to errors."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR."""

_kept: list[object] = []
"""llama.cpp keeps only a pointer to the log callback: the callback must outlive every model."""


@functools.cache
def llama_library() -> Any:
    """The low-level module of llama-cpp-python, initialised once."""
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # a ctypes function type
    def log(level: int, text: bytes, data: object) -> None:
        if level == ERROR_LEVEL:
            sys.stderr.write(text.decode("utf-8", "replace"))

    _kept.append(log)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp
