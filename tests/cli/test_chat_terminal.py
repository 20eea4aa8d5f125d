"""``bitwright chat`` on a terminal: the prompt, Ctrl-C during an answer and at the prompt, Ctrl-D."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        self._master, slave = pty.openpty()
        line = [sys.executable, "-m", "bitwright.cli", *map(str, arguments)]
        environment = {**os.environ, "TERM": "dumb"}
        # A session of its own, with the terminal as its controlling one, so that Ctrl-C becomes a signal.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *line],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            # A test run in the background inherits an ignored SIGINT; a terminal's programs do not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self.shown = b""

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, text: bytes, seconds: float = 60) -> None:
        """Read until ``text`` has been shown behind everything waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown, only {self.shown!r}"
            self.shown += os.read(self._master, 4096)
        self.shown = self.shown.split(text, 1)[1]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(artifact_path: Path) -> Iterator[Terminal]:
    one = Terminal("chat", artifact_path, "-n", "3")
    yield one
    one.close()


def test_a_conversation(terminal: Terminal) -> None:
    terminal.wait_for(b"/reset starts over")
    terminal.wait_for(b"> ")
    terminal.type(b"a\n")
    terminal.wait_for(b"tokens/s, stopped by length]")
    terminal.type(b"b\n")
    terminal.wait_for(b" cached), first token after")
    terminal.type(b"/reset\n")
    terminal.wait_for(b"starting over")
    terminal.type(b"/help\n")
    terminal.wait_for(b"Ctrl-C interrupts an answer")
    terminal.type(b"x" * 100 + b"\n")
    terminal.wait_for(b"the context of this artifact is 48 tokens")
    terminal.wait_for(b"/reset starts over")
    terminal.type(b"/exit\n")
    assert terminal.process.wait(timeout=30) == 0


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.wait_for(b"> ")
    terminal.type(CTRL_D)
    assert terminal.process.wait(timeout=30) == 0


def test_ctrl_c_at_the_prompt_says_how_to_leave(terminal: Terminal) -> None:
    terminal.wait_for(b"> ")
    # Python's readline misses a signal between showing the prompt and waiting for keys; nobody types that fast.
    time.sleep(0.5)
    terminal.type(b"half a line" + CTRL_C)
    terminal.wait_for(b"(or Ctrl-D) leaves")
    terminal.wait_for(b"> ")
    terminal.type(CTRL_D)
    assert terminal.process.wait(timeout=30) == 0
