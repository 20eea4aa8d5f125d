"""What a measuring process is asked to run in tests."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def obey(request: Any) -> Any:
    """Does what the request says."""
    if request == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request == "exit":
        print("LLVM ERROR: no space", flush=True)
        os._exit(7)
    if request == "hang":
        time.sleep(600)
    if request == "raise":
        raise ValueError("a knob\nthat does not fit")
    if request == "refuse":
        from bitwright.errors import UnsupportedError

        raise UnsupportedError("no such kernel", where="here")
    if request == "print":
        print("noise on stdout", flush=True)
    return {"answer": request, "process": os.getpid()}
