"""What all verbs print with: results to stdout, everything meant for a watching person to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def error(text: str) -> None:
    """An error message, red on a terminal."""
    first, *rest = text.splitlines() or [""]
    label = "\033[1;31merror:\033[0m" if sys.stderr.isatty() else "error:"
    print(f"{label} {first}", *rest, sep="\n", file=sys.stderr)


def traceback() -> None:
    """The traceback of the exception being handled."""
    import traceback as library

    library.print_exc()


def note(text: str) -> None:
    """A remark for people."""
    print(text, file=sys.stderr)


def print_json(document: Any) -> None:
    """The one JSON document that ``--json`` promises on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns whose cells are all numbers are right-aligned.

    On a terminal that is too narrow the last column continues on further lines; nothing is cut off.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(row[index][:1].isdigit() or row[index][:1] in "-" for row in rows)
        last = index == len(columns) - 1
        table.add_column(column, justify="right" if numeric else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if sys.stdout.isatty():
        Console().print(table)
        return
    # Piped output is for programs: never cut to a width that nobody sees, nor padded to it.
    output = Console(width=10_000)
    with output.capture() as capture:
        output.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


Progress = Callable[[int, int], None]

LINE_SECONDS = 30.0
"""Without a terminal a line says at most so often how far work is: long work is seen in a log, short work is not."""


@contextmanager
def progress(description: str) -> Iterator[Progress]:
    """A progress bar on stderr, or lines where that is no terminal; call it with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    output = Console(stderr=True)
    if not output.is_terminal:
        tell = _lines(description)
        yield lambda done, total: tell(f"{done} of {total}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=output, transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def phases(description: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that names the phase at work and the time it has taken; call it with each phase's name.

    Where stderr is no terminal, lines that say the same from time to time.
    """
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    output = Console(stderr=True)
    if not output.is_terminal:
        yield _lines(description)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bars(*columns, console=output, transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda phase: bars.update(task, description=f"{description}: {phase}")


def _lines(description: str) -> Callable[[str], None]:
    """Prints what it is told, and the time since now, if LINE_SECONDS have passed since the last line."""
    start = last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_SECONDS:
            return
        last = now
        minutes, seconds = divmod(int(now - start), 60)
        print(f"{description}: {text} ({minutes}:{seconds:02d})", file=sys.stderr, flush=True)

    return tell


def format_bytes(count: int) -> str:
    """``78.5 MB``: decimal units, as file managers and the option ``--max-bytes`` use them."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def format_cache(per_token: int, fixed: int) -> str:
    """``11.5 kB per token``, and what tokens that are kept exact take besides."""
    return f"{format_bytes(per_token)} per token" + (f", and {format_bytes(fixed)}" if fixed else "")
