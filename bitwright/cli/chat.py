"""``bitwright chat``"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bitwright.cli import console
from bitwright.cli.options import (
    ArtifactArgument,
    CacheOption,
    ContextShiftOption,
    KeepOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)
from bitwright.cli.run import describe, save_cache
from bitwright.errors import InputError, UsageError

if TYPE_CHECKING:
    from bitwright.runtime.session import Session

HELP = "/reset starts over, /exit (or Ctrl-D) leaves, Ctrl-C interrupts an answer"


def command(
    artifact: ArtifactArgument,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: PenaltyOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    threads: ThreadsOption = None,
    cache: CacheOption = None,
    context_shift: ContextShiftOption = False,
    keep: KeepOption = None,
) -> None:
    """Talk with a chat model. /reset starts over, /exit or Ctrl-D leaves, Ctrl-C interrupts an answer.

    Through a pipe every line of stdin is one message, and only answers are printed.
    """
    from bitwright.runtime.session import load

    session = load(artifact, threads=threads)
    _ = session.chat_template  # a model without one is refused before the first message
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": stop or (),
        "context_shift": context_shift,
        "keep": keep,
    }
    if cache is not None and cache.exists():
        session.restore_cache(cache)
    Conversation(session, system, options, interactive=sys.stdin.isatty()).run()
    save_cache(session, cache)


class Conversation:
    """The messages so far and the loop that extends them."""

    def __init__(self, session: Session, system: str | None, options: dict[str, Any], *, interactive: bool) -> None:
        self._session, self._options, self._interactive = session, options, interactive
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)

    def run(self) -> None:
        """Read messages and answer them until the input ends."""
        if self._interactive:
            console.note(f"{self._session.manifest.model.name}: {HELP}")
        while (line := self._read()) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                self._messages = list(self._opening)
                console.note("starting over")
            elif line in ("/help", "/?"):
                console.note(HELP)
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        """The next message without surrounding spaces; None at the end of the input."""
        if not self._interactive:
            return self._read_line()
        import readline  # noqa: F401 - input() then edits lines and keeps a history

        try:
            return input("\001\033[1m\002> \001\033[0m\002").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            console.note(f"\n{HELP}")
            return ""

    def _read_line(self) -> str | None:
        raw = sys.stdin.buffer.readline()
        try:
            return raw.decode("utf-8").strip() if raw else None
        except UnicodeDecodeError as error:
            raise InputError("the message is not valid UTF-8", where="stdin", limit=str(error)) from error

    def _answer(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        try:
            generation = self._session.generate(messages=self._messages, stream=True, **self._options)
        except UsageError as error:
            if not self._interactive:
                raise
            self._messages.pop()
            console.error(f"{error}\n  /reset starts over")
            return
        pieces: list[str] = []
        try:
            for piece in generation:
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            generation.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
        if self._interactive:
            console.note(describe(generation.stats))
