"""bitwright compiles language models to mixed-precision packed integers and runs them.

>>> import bitwright
>>> artifact = bitwright.compile("smollm2-135m", scheme="u4g32a8", output="smollm2-u4")  # doctest: +SKIP
>>> session = bitwright.load("smollm2-u4")  # doctest: +SKIP
>>> for piece in session.generate("The capital of France is", stream=True):  # doctest: +SKIP
...     print(piece, end="")

The functions are imported on first use: ``import bitwright`` itself loads neither NumPy nor TVM.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bitwright.version import __version__

if TYPE_CHECKING:
    from bitwright.pipeline import compile as compile
    from bitwright.runtime.session import load as load


# TVM reads these once, when it makes a pool of threads, and its own defaults would use half of the processors of an x86
# machine without hyper-threading and bind this process's main thread to them.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("TVM_BIND_THREADS", "0")

__all__ = ["__version__", "compile", "load"]

_HOMES = {"compile": "bitwright.pipeline", "load": "bitwright.runtime.session"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
