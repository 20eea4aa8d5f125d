"""The ``bitwright`` command: a table of verbs, each imported when it is called.

A verb is a file of this folder named like it (``plan diff`` is ``plan/diff.py``), with a function ``command`` whose
parameters are its arguments and options (typer's annotations) and whose docstring is its help. It parses, calls the
library and prints; errors are exceptions. At import time a verb may import typer and the standard library only:
``bitwright --help`` answers at
once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from bitwright.cli import console
from bitwright.errors import BitwrightError, UnsupportedError
from bitwright.version import __version__

VERBS = {
    "doctor": "Show this machine: instruction sets, caches, bandwidth.",
    "inspect": "List a model's sites and their bytes at each scheme.",
    "profile": "Score what every scheme of every site costs in quality.",
    "allocate": "Choose every site's scheme under budgets: a plan.",
    "compile": "Compile a model to an artifact.",
    "run": "Answer one prompt with an artifact.",
    "chat": "Talk with an artifact.",
    "plan": "Read plans: what differs, why, and pictures.",
    "study": "Compare strategies: solve, compile, measure.",
    "bench": "Measure speed against this machine's bandwidth.",
    "eval": "Measure perplexity and divergence on a text.",
    "tune": "Search for faster kernels by measuring them.",
    "latency": "Measure and predict how long each scheme takes.",
    "verify": "Check an artifact's digests and target.",
}
"""Name and one-line help of each verb, in the order of ``bitwright --help``."""

GROUPS = {
    "plan": {
        "diff": "Show what differs between two plans.",
        "explain": "Show why each site of a plan got its bits.",
        "draw": "Draw a plan's bits, and where it lies on the Pareto front.",
    }
}
"""Verbs that consist of verbs."""

INTERRUPTED = 130
TERMINATED = 143
INTERNAL = 70
TRACEBACK_VARIABLE = "BITWRIGHT_TRACEBACK"


class LazyCommand(TyperCommand):
    """A verb's name and help; the real command is imported when its arguments are parsed."""

    def __init__(self, name: str, text: str, group: str = "") -> None:
        super().__init__(name, help=text, rich_markup_mode=None)
        self.path = f"{group}.{name}" if group else name

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return _load_verb(self.path).make_context(info_name, args, parent, **extra)


def _load_verb(path: str) -> Any:
    module, name = f"bitwright.cli.{path}", path.rpartition(".")[2]
    try:
        function = import_module(module).command
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UnsupportedError(
            f"this installation has no verb '{name}'", where=module, remedy="install bitwright again"
        ) from error
    verb = typer.Typer(add_completion=False, rich_markup_mode=None)
    verb.command(name)(function)
    return typer.main.get_command(verb)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bitwright {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
    traceback: bool = typer.Option(
        False, "--traceback", help=f"Show Python tracebacks of errors ({TRACEBACK_VARIABLE}=1)."
    ),
) -> None:
    """Compile language models to mixed-precision packed integers for this machine, and run them.

    MODEL is an ONNX file, a Hugging Face folder, a GGUF file, or smollm2-135m (built in). Results go to stdout (one
    JSON document with --json), progress and errors to stderr. Exit codes: 0 ok, 2 usage, 3 bad input file, 4
    infeasible budget, 5 unsupported, 6 numerical check failed, 70 internal error, 130 interrupted.
    """


def build() -> Any:
    """The command-line interface as a click-style command."""
    app = typer.Typer(name="bitwright", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    app.callback()(_options)
    # typer makes a group of an app with a callback and any command; its verbs are replaced by lazy ones.
    app.command("verify")(_version)
    group: Any = typer.main.get_command(app)
    group.commands.clear()
    for name, text in VERBS.items():
        group.add_command(_group(name, text) if name in GROUPS else LazyCommand(name, text), name)
    return group


def _group(name: str, text: str) -> Any:
    group = TyperGroup(name=name, help=text, no_args_is_help=True, rich_markup_mode=None)
    for verb, about in GROUPS[name].items():
        group.add_command(LazyCommand(verb, about, name), verb)
    return group


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; what went wrong is on stderr."""
    wants_traceback = "--traceback" in arguments or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")
    try:
        build().main(args=list(arguments), prog_name="bitwright")
    except SystemExit as error:
        if isinstance(error.code, str) and error.code.isdecimal():  # it came through TVM, which keeps only text
            return int(error.code)
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if wants_traceback:
            console.traceback()
        elif isinstance(error, BitwrightError):
            console.error(str(error))
        else:
            console.error(
                f"internal error: {type(error).__name__}: {error}\n"
                f"  remedy: run `bitwright --traceback ...` or set {TRACEBACK_VARIABLE}=1 to see where, and report it"
            )
        return error.exit_code if isinstance(error, BitwrightError) else INTERNAL
    return 0


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that partial output is cleaned up.
    raise SystemExit(TERMINATED)


def main() -> NoReturn:
    """Entry point of the ``bitwright`` script."""
    signal.signal(signal.SIGTERM, _terminate)
    code = run(sys.argv[1:])
    if code == INTERRUPTED:
        console.note("interrupted")
    sys.exit(code)
