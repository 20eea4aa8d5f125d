"""The other end of ``worker``: requests with a time limit, and a new process after a crash."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import IO, Any

from bitwright.errors import InternalError

START_SECONDS = 120.0
"""Importing TVM takes seconds, on a busy machine many."""


class MeasuringError(Exception):
    """A candidate failed: why, in one sentence."""


class IsolatedWorker:
    """A process that is started when it is first needed, and again when it was lost. Use as a context manager.

    Args:
        entry: ``module:function``; the function takes and returns what JSON can say.
        timeout: seconds that one request may take.
    """

    def __init__(self, entry: str, timeout: float) -> None:
        self.entry, self.timeout = entry, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._pending = b""

    def __enter__(self) -> IsolatedWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __call__(self, request: Any) -> Any:
        """The function's answer.

        Raises:
            MeasuringError: it raised, did not end in time, or took the process with it.
            InternalError: no process could be started.
        """
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise MeasuringError(self._death()) from error
        answer = self._answer(time.monotonic() + self.timeout)
        if answer is None:
            self.stop()
            raise MeasuringError(f"it did not end within {self.timeout:g} s")
        if "error" in answer:
            raise MeasuringError(str(answer["error"]))
        return answer["result"]

    def stop(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._pending, self._errors = b"", tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bitwright.autotune.worker", self.entry],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            answer = self._answer(time.monotonic() + START_SECONDS)
        except MeasuringError as error:
            raise InternalError("the measuring process does not start", where=self.entry, limit=str(error)) from error
        if answer is None:
            self.stop()
            raise InternalError("the measuring process does not start", limit=f"{START_SECONDS:g} s", where=self.entry)
        return self._process

    def _answer(self, deadline: float) -> dict[str, Any] | None:
        """The next line of the process as JSON; None if none came in time."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    return None
                read = os.read(self._process.stdout.fileno(), 1 << 16)
                if not read:
                    raise MeasuringError(self._death())
                self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> str:
        """How the process ended, with the last thing that it said."""
        assert self._process is not None and self._errors is not None
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.stop()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process ended with {ended}{f': {said[-1][:200]}' if said else ''}"
