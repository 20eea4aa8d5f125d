"""A process of its own to build and run candidates in: ``python -m bitwright.autotune.worker MODULE:FUNCTION``.

A candidate may crash the process or never end; the search must survive both. The worker imports the function, says
that it is ready, then answers one JSON request a line, one at a time: ``{"result": ...}``, or ``{"error": text}``
when the function raised. It ends when its input ends, and when its parent does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from bitwright.errors import BitwrightError

_PR_SET_PDEATHSIG = 1


def serve(function: Callable[[Any], Any], requests: Iterable[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer each request."""
    answer({"ready": True})
    for line in requests:
        try:
            answer({"result": function(json.loads(line))})
        except BitwrightError as error:
            answer({"error": " ".join(str(error).split())})
        except Exception as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            answer({"error": f"{type(error).__name__}: {last[:300]}"})


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # Compilers print on stdout too; the protocol gets a descriptor of its own.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    function = getattr(import_module(module), name)
    serve(function, sys.stdin, lambda document: print(json.dumps(document), file=answers))


if __name__ == "__main__":
    main()
